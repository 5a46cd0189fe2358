"""`m40llm bench decode` from the shell: what it refuses, and what it prints."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from m40llm.cli.app import app
from m40llm.cli.bench import MAX_BATCH
from m40llm.kernels.program.ends import MAX_SLOTS
from m40llm.testing import write_tiny_gguf

runner = CliRunner()


def assert_refused(verb: str, args: list[str], words: str) -> None:
    done = runner.invoke(app, ["bench", verb, *args])
    assert done.exit_code == 1
    assert words in done.stderr.replace("--", "")
    assert "Traceback" not in done.output


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--shape", ""], "shape: expected one of tiny, 135m, 1b, 8b, qwen3-8b, got ''"),
        (["--shape", "7b"], "shape: expected one of tiny, 135m, 1b, 8b, qwen3-8b, got '7b'"),
        (["--type", "Q4"], "type: expected some of F32, F16"),
        (["--form", "fast"], "form: expected some of eager, graph, persistent, got 'fast'"),
        (["--kv", "0,"], "kv: expected numbers from 0, with commas, got '0,'"),
        (["--batch", "0"], "batch: expected numbers from 1"),
        (["--batch", "65"], "batch: expected numbers up to 64, got 65"),
        (["--device", "cpu"], "device: expected a CUDA card or the emulator, got 'cpu'"),
        (["no-such-file.gguf"], "no-such-file.gguf"),
        (
            ["m.gguf", "--shape", "1b"],
            "shape: not beside MODEL, whose own shape and types are timed",
        ),
        (["m.gguf", "--type", "F16"], "type: not beside MODEL"),
        (["m.gguf", "--batch", "1"], "types are timed, in one sequence; got '1'"),
    ],
)
def test_refusals(args: list[str], words: str) -> None:
    assert_refused("decode", args, words)


def test_the_largest_batch_is_the_decoders() -> None:
    """Written again there: --help does not load what knows it."""
    assert MAX_BATCH == MAX_SLOTS


def test_a_model_on_the_cpu_is_refused(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    args = [str(path), "--device", "cpu", "--tokens", "4"]
    assert_refused("decode", args, "device: expected a CUDA card or the emulator, got 'cpu'")


@pytest.mark.parametrize(("arch", "form"), [("llama", "persistent"), ("mixtral", "graph")])
def test_a_model_on_the_emulator(arch: str, form: str, tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", arch=arch, head_dim=64, context_length=64)
    args = ["bench", "decode", str(path), "--device", "emulator", "--tokens", "4", "--json"]
    done = runner.invoke(app, [*args, "--kv", "2"])
    assert done.exit_code == 0, done.output
    [row] = json.loads(done.stdout)["rows"]
    assert (row["form"], row["kv"], row["n_tokens"], row["n_seqs"]) == (form, 2, 4, 1)
    assert row["tokens_per_s"] > 0
    assert "device: emulator\n" in done.stderr
    assert row["read_share"] is None


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--shape", "7b"], "shape: expected one of tiny, 135m, 1b, 8b, qwen3-8b, got '7b'"),
        (["--type", "Q4"], "type: expected some of F32, F16"),
        (["--tokens", "8"], "tokens: expected numbers from 9, with commas, got '8'"),
        (["--tokens", "16,"], "tokens: expected numbers from 9"),
        (["--device", "cpu"], "device: expected a CUDA card or the emulator, got 'cpu'"),
        (["no-such-file.gguf"], "no-such-file.gguf"),
        (["m.gguf", "--shape", "1b"], "shape: not beside MODEL, whose own shapes and types"),
    ],
)
def test_refusals_of_tune(args: list[str], words: str) -> None:
    assert_refused("tune", args, words)


def test_tuning_for_a_model_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_compiled: Any
) -> None:
    monkeypatch.setenv("M40LLM_HOME", str(with_compiled(tmp_path)))
    monkeypatch.setattr("m40llm.bench.tune.N_CANDIDATES", 1)
    path = write_tiny_gguf(tmp_path / "tiny.gguf", head_dim=64, context_length=64)
    args = ["bench", "tune", str(path), "--device", "emulator", "--tokens", "16", "--json"]
    done = runner.invoke(app, args)
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["rows"]
    assert rows
    assert all(row["tuned"] == row["choice"] for row in rows)
    [kept] = tmp_path.glob("tuned/*.kernel")
    assert f"kept {len(rows)} choices for this card: {kept}" in done.stderr


@pytest.mark.parametrize("verb", ["decode", "report", "tune"])
def test_without_a_compiler(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before a module is loaded that has kernels, which would be an ImportError."""
    told = "numba-cuda is not installed: pip install numba-cuda"
    monkeypatch.setattr("m40llm.device.numba_cuda.numba_cuda_problem", lambda: told)
    result = CliRunner().invoke(app, ["bench", verb])
    assert result.exit_code == 1
    assert f"kernels cannot be compiled: {told}" in result.stderr
