"""Each verb: what it prints, its JSON document, its usage errors."""

import copy
import importlib
import inspect
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m40llm.cli import flags, options
from m40llm.cli.output import bytes_done
from m40llm.cli.perplexity import windows
from m40llm.device.cuda import requirements
from m40llm.engine.sampling_params import SamplingParams
from m40llm.model.kv_cache import KV_TYPES
from m40llm.progress import BytesDone
from m40llm.testing import write_tiny_gguf

doctor = importlib.import_module("m40llm.cli.doctor")  # the name in the package may be the verb
Run = Callable[..., Any]


def document(result: Any) -> dict[str, Any]:
    """The one JSON document on stdout."""
    assert result.exit_code == 0, result.output
    parsed: dict[str, Any] = json.loads(result.stdout)
    return parsed


def test_defaults_are_those_of_sampling_params() -> None:
    fields = inspect.signature(SamplingParams).parameters
    assert {name: fields[name].default for name in options.DEFAULTS} == options.DEFAULTS


def test_generate_streams_text(run: Run, fake_llm: Any, tiny_model: str) -> None:
    result = run("generate", tiny_model, "-p", "hello", "-n", "7", "--stop", "x", "--stop", "y")
    assert result.exit_code == 0
    assert result.stdout == "a b c\n"
    assert "device: cpu (no NVIDIA driver was found)" in result.stderr
    assert "4.0 tokens/s" in result.stderr
    assert fake_llm.asked["prompt"] == "hello"
    assert fake_llm.asked["params"].max_tokens == 7
    assert fake_llm.asked["params"].stop == ("x", "y")


def test_generate_json(run: Run, fake_llm: Any, tiny_model: str) -> None:
    made = document(run("generate", tiny_model, "-p", "hello", "--json"))
    keys = {"model", "device", "prompt_ids", "ids", "text", "stop_reason", "timings"}
    assert set(made) == keys
    assert made["text"] == "a b c"
    assert made["prompt_ids"] == [1, 2, 3]


def test_text_from_stdin_and_file(run: Run, fake_llm: Any, tiny_model: str, tmp_path: Path) -> None:
    run("generate", tiny_model, "-p", "-", input="piped wörds\n")
    assert fake_llm.asked["prompt"] == "piped wörds\n"
    (tmp_path / "text").write_bytes("Grüße".encode())
    run("generate", tiny_model, "-f", str(tmp_path / "text"))
    assert fake_llm.asked["prompt"] == "Grüße"
    (tmp_path / "latin").write_bytes("Grüße".encode("latin-1"))
    result = run("generate", tiny_model, "-f", str(tmp_path / "latin"))
    assert result.exit_code == 1
    assert "latin: not UTF-8 text, at byte 2" in result.stderr


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["generate", "m.gguf"], "either -p TEXT"),
        (["generate", "m.gguf", "-p", "a", "-f", "b"], "either -p TEXT"),
        (
            ["generate", "m.gguf", "-p", "a", "--temp", "-1"],
            "--temp: expected a number from 0 to 1000, got -1.0",
        ),
        (["generate", "m.gguf", "-p", "a", "--top-p", "7"], "--top-p: expected a number above 0"),
        (["generate", "m.gguf", "-p", "a", "-n", "0"], "--max-tokens: expected an integer from 1"),
        (["chat", "m.gguf", "--repetition-penalty", "0"], "--repetition-penalty: expected"),
        (["generate", "m.gguf", "-p", "a", "--temp", "warm"], "--temp"),
        (["generate", "m.gguf", "-p", "a", "--device", "tpu"], "expected auto, cpu, cuda"),
        (
            ["generate", "m.gguf", "-p", "a", "--decode", "fast"],
            "expected auto, host, eager, graph, persistent, got 'fast'",
        ),
        (["chat", "m.gguf", "--decode", ""], "expected auto, host"),
        (["embed", "m.gguf", "-p", "a", "--kv-type", "q4_0"], "expected f16 or q8_0, got 'q4_0'"),
        (["generate", "m.gguf", "-p", "a", "--max-seq-len", "0"], "--max-seq-len"),
        (["generate", "m.gguf", "-p", "\udcff"], "not valid UTF-8"),
        (["generate"], "MODEL"),
        (["generate", "m.gguf", "Once upon"], "unexpected 'Once upon': a text needs -p"),
        (
            ["perplexity", "m.gguf", "text.txt"],
            "'text.txt': a text needs -p, a file of it -f",
        ),
        (["tokenize", "m.gguf", "12"], "ids need --decode"),
        (["tokenize", "m.gguf", "--decode"], "at least one token id"),
        (["tokenize", "m.gguf", "--decode", "one"], "expected a token id, got 'one'"),
        (["tokenize", "m.gguf", "--decode", "1", "-p", "a"], "not -p or -f"),
        (["pull"], "NAME of a model or --list"),
        (["pull", "smollm2", "--list"], "NAME of a model or --list"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_usage_errors(run: Run, args: list[str], told: str) -> None:
    result = run(*args, "--json") if args[0] != "frobnicate" else run(*args)
    assert result.exit_code == 2
    assert told in result.stderr
    assert result.stdout == ""


def test_who_makes_the_tokens(run: Run, fake_llm: Any, tiny_model: str) -> None:
    """A form is asked for by the verbs that decode; the others never measure one."""
    for given in ("auto", "host", "eager", "graph", "persistent"):
        assert run("chat", tiny_model, "--decode", given, input="").exit_code == 0
        assert fake_llm.asked["decode"] == given
    assert run("chat", tiny_model, input="").exit_code == 0
    assert fake_llm.asked["decode"] is None
    assert run("generate", tiny_model, "-p", "a", "--decode", "auto").exit_code == 0
    assert run("logits", tiny_model, "-p", "a").exit_code == 0
    assert fake_llm.asked["decode"] == "host"


def test_kv_type(run: Run, fake_llm: Any, tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every verb that loads a model has it; what it is compared with keeps its own cache in f16."""
    assert options._KV_TYPES == KV_TYPES
    asked: list[str | None] = []
    load = classmethod(lambda cls, model, **options: asked.append(options["kv_type"]) or cls(model))
    monkeypatch.setattr(fake_llm, "load", load)
    for verb in ("generate", "chat", "logits", "embed", "perplexity"):
        text = [] if verb == "chat" else ["-p", "hello there"]
        asked.clear()
        for given in ([], ["--kv-type", "q8_0"]):
            result = run(verb, tiny_model, *text, *given, input="")
            assert result.exit_code == 0, result.output
        assert asked == [None, "q8_0"]
    asked.clear()
    run("perplexity", tiny_model, "-p", "hello there", "--kv-type", "q8_0", "--against", tiny_model)
    assert asked == ["q8_0", "f16"]


@pytest.mark.parametrize("verb", ["generate", "chat"])
def test_who_proposes_tokens(
    run: Run, fake_llm: Any, tiny_model: str, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    load = classmethod(lambda cls, model, **options: asked.append(options) or cls(model))
    monkeypatch.setattr(fake_llm, "load", load)
    text = ["-p", "hello"] if verb == "generate" else []
    run(verb, tiny_model, *text, input="")
    run(verb, tiny_model, *text, "--speculate", "ngram", "--speculate-tokens", "7", input="")
    told = [(each["speculate"], each["speculate_tokens"]) for each in asked]
    assert told == [(None, None), ("ngram", 7)]
    for n in ("0", "65"):
        refused = run(verb, tiny_model, *text, "--speculate", "ngram", "--speculate-tokens", n)
        assert refused.exit_code == 2


def test_what_came_of_proposals_is_told(run: Run, tiny_model: str) -> None:
    args = ("generate", tiny_model, "-p", "aaaaaaaaaa", "-n", "30", "--temp", "0", "--ignore-eos")
    proposing = (
        *args,
        "--device",
        "cpu",
        "--speculate",
        "ngram",
        "--set",
        "repetition_penalty=0.2",
    )
    made = document(run(*proposing, "--json"))
    assert 0 < made["timings"]["accepted_tokens"] <= made["timings"]["proposed_tokens"]
    assert "proposed tokens accepted; ended by: length" in run(*proposing).stderr
    refused = run(*args, "--speculate-tokens", "4")
    assert refused.exit_code == 1
    assert "error: --speculate-tokens: expected speculate beside it" in refused.stderr


def test_who_makes_the_tokens_is_told_of_a_card(
    run: Run, fake_llm: Any, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_llm, "device_name", "cuda:0")
    monkeypatch.setattr(fake_llm, "device_reason", "Tesla M40, sm_52")
    monkeypatch.setattr(fake_llm, "decode_form", "graph", raising=False)
    told = run("generate", tiny_model, "-p", "a").stderr
    assert "device: cuda:0 (Tesla M40, sm_52), decode: graph\n" in told
    told = run("logits", tiny_model, "-p", "a").stderr
    assert "device: cuda:0 (Tesla M40, sm_52)\n" in told


def test_tokenize_and_back(run: Run, tiny_model: str) -> None:
    made = document(run("tokenize", tiny_model, "-p", "hello there", "--no-bos", "--json"))
    assert "".join(made["pieces"]).strip() == "hello there"
    assert made["text"] == "hello there"
    result = run("tokenize", tiny_model, "--decode", *map(str, made["ids"]))
    assert result.stdout == "hello there\n"
    shown = run("tokenize", tiny_model, "-p", "hello there", "--no-bos")
    assert len(shown.stdout.splitlines()) == len(made["ids"])
    assert f"{len(made['ids'])} tokens" in shown.stderr


def test_logits(run: Run, fake_llm: Any, tiny_model: str) -> None:
    made = document(run("logits", tiny_model, "-p", "hello", "--top", "3", "--json"))
    best = made["top"][0]
    assert [token["logit"] for token in made["top"]] == [5, 0, 0]
    assert best["id"] == made["prompt_ids"][-1] + 1
    lse = math.log(math.exp(5) + 511)
    assert best["logprob"] == pytest.approx(5 - lse, rel=1e-12)
    shown = run("logits", tiny_model, "-p", "hello", "--top", "3").stdout.splitlines()
    assert len(shown) == 4
    assert shown[0].split() == ["id", "token", "logit", "logprob", "probability"]


@pytest.mark.parametrize(("chunk", "stride"), [(64, 32), (10, 9), (10, 1), (2, 1), (7, 3)])
@pytest.mark.parametrize("n_ids", [2, 3, 10, 11, 64, 65, 200])
def test_windows_score_each_token_once(n_ids: int, chunk: int, stride: int) -> None:
    scored = []
    for begin, first, end in windows(n_ids, chunk, stride):
        assert begin < first < end <= begin + chunk
        scored += range(first, end)
    assert scored == list(range(1, n_ids))


def test_perplexity(run: Run, fake_llm: Any, tiny_model: str) -> None:
    args = ("perplexity", tiny_model, "-p", "hello there " * 30, "--json", "--per-token")
    made = document(run(*args))
    assert made["chunk"] == 64
    assert made["stride"] == 32
    assert made["n_tokens"] == len(made["ids"]) == len(made["nll"]) > 64
    lse = math.log(math.exp(5) + 511)
    before = [*run_ids(run, tiny_model, "hello there " * 30)[:1], *made["ids"]]
    wanted = [
        lse - 5 * (after == token_id + 1)
        for token_id, after in zip(before, made["ids"], strict=False)
    ]
    assert made["nll"] == pytest.approx(wanted, rel=1e-12)
    assert made["mean_nll"] == pytest.approx(math.fsum(wanted) / len(wanted), rel=1e-12)
    assert made["perplexity"] == pytest.approx(math.exp(made["mean_nll"]), rel=1e-12)
    few = document(run(*args, "--max-tokens", "5"))
    assert few["nll"] == made["nll"][:4]


def test_perplexity_against_another_file(
    run: Run, fake_llm: Any, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base says what MODEL says, less sure of it: 3 instead of 5 above 511 others."""

    class Unsure(fake_llm):  # type: ignore[misc]
        @classmethod
        def load(cls, model: str, **options: Any) -> Any:
            made = fake_llm.load(model, **options)
            made.scale = 1.0 if model == tiny_model else 0.6
            return made

    base = Path(tiny_model).with_name("base.gguf")
    base.write_bytes(Path(tiny_model).read_bytes())
    monkeypatch.setattr("m40llm.research.LLM", Unsure)
    args = ("perplexity", tiny_model, "-p", "hello there " * 9, "--against", str(base))
    made = document(run(*args, "--json"))
    p, q = (np.exp([x, *[0.0] * 511]) / (math.exp(x) + 511) for x in (3.0, 5.0))
    wanted = float((p * np.log(p / q)).sum())
    for key in ("mean_kl", "p99_kl", "max_kl"):
        assert made[key] == pytest.approx(wanted, rel=1e-6)
    assert made["same_top"] == 1.0
    assert made["against"] == str(base)
    assert f"KL divergence {wanted:.6f} nats" in run(*args).stdout


def test_perplexity_against_another_vocabulary(
    run: Run, fake_llm: Any, tiny_model: str, tmp_path: Path
) -> None:
    other = write_tiny_gguf(tmp_path / "other.gguf", arch="qwen2")
    result = run("perplexity", tiny_model, "-p", "hello there", "--against", str(other))
    assert result.exit_code == 1
    assert "--against: expected a model of the same vocabulary" in result.stderr


def run_ids(run: Run, model: str, text: str) -> list[int]:
    ids: list[int] = document(run("tokenize", model, "-p", text, "--json"))["ids"]
    return ids


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        (["--chunk", "65"], "--chunk: expected at most 64"),
        (["--chunk", "8", "--stride", "8"], "--stride: expected less than the chunk"),
    ],
)
def test_perplexity_refuses(
    run: Run, fake_llm: Any, tiny_model: str, extra: list[str], told: str
) -> None:
    result = run("perplexity", tiny_model, "-p", "hello there", *extra)
    assert result.exit_code == 1
    assert told in result.stderr


def test_unpacked_types_are_told(
    run: Run, fake_llm: Any, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_llm, "unpacked", ["5 IQ3_S tensors are unpacked: 9 MB"])
    monkeypatch.setattr(fake_llm, "devices", ["cpu", "cuda:0"])
    told = run("generate", tiny_model, "-p", "hello").stderr
    for device in ("cpu", "cuda:0"):
        note = f"5 IQ3_S tensors are unpacked: 9 MB (no {device} code reads that type as it is)"
        assert f"note: {note}" in told


@pytest.mark.parametrize("verb", ["generate", "chat", "logits", "perplexity", "embed"])
def test_layers_on_the_card(
    verb: str, run: Run, fake_llm: Any, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    load = classmethod(lambda cls, model, **how: asked.append(how["gpu_layers"]) or cls(model))
    monkeypatch.setattr(fake_llm, "load", load)
    text = {"input": "hi"} if verb == "chat" else {}
    args = [] if verb == "chat" else ["-p", "hello there"]
    for given in ([], ["all"], ["auto"], ["0"], ["22"]):
        result = run(verb, tiny_model, *args, *(["--gpu-layers"] if given else []), *given, **text)
        assert result.exit_code == 0
        assert "22 of 32" not in result.stderr
    assert asked == [None, None, "auto", 0, 22]
    monkeypatch.setattr(fake_llm, "devices", ["cpu", "cuda:0"])
    told = run(verb, tiny_model, *args, "--gpu-layers", "22", **text).stderr
    assert "note: 22 of 32 layers on cuda:0, 10 on cpu" in told
    for bad in ("-1", "1.5", "some", ""):
        result = run(verb, tiny_model, *args, "--gpu-layers", bad, **text)
        assert result.exit_code == 2
        assert "expected a number of layers, auto or all" in " ".join(result.stderr.split())


@pytest.mark.parametrize("verb", ["generate", "chat"])
def test_what_fit_chose_is_told(
    verb: str, run: Run, fake_llm: Any, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    load = classmethod(lambda cls, model, **how: asked.append(how["fit"]) or cls(model))
    monkeypatch.setattr(fake_llm, "load", load)
    args = [verb, tiny_model, *(["-p", "hello"] if verb == "generate" else [])]
    assert "fit:" not in run(*args, input="hi").stderr
    assert "fit: context of 8,192 tokens" in run(*args, "--fit", input="hi").stderr
    assert asked == [False, True]


def test_rare_sampling_parameters(run: Run, fake_llm: Any, tiny_model: str) -> None:
    given = ("--set", "xtc_probability=0.5", "--set", "samplers=top_k, temperature", "--temp", "1")
    assert run("generate", tiny_model, "-p", "hello", *given).exit_code == 0
    params = fake_llm.asked["params"]
    assert params.xtc_probability == 0.5
    assert params.samplers == ("top_k", "temperature")
    assert params.temperature == 1.0


@pytest.mark.parametrize(
    ("pair", "told"),
    [
        ("xtc_probability", "expected KEY=VALUE"),
        ("warmth=1", "expected one of temperature, top_k"),
        ("mirostat=two", "expected a whole number, got 'two'"),
        ("mirostat=1", "mirostat: expected 0 (off) or 2, got 1"),
        ("samplers=top_k,heat", "samplers: expected some of penalties, dry"),
    ],
)
def test_wrong_sampling_parameters(
    run: Run, fake_llm: Any, tiny_model: str, pair: str, told: str
) -> None:
    result = run("generate", tiny_model, "-p", "hello", "--set", pair)
    assert result.exit_code == 2
    assert told in " ".join(result.stderr.split())


def test_embed(run: Run, fake_llm: Any, tiny_model: str, tmp_path: Path) -> None:
    made = document(run("embed", tiny_model, "-p", "abc", "-p", "a", "--json"))
    assert made["embeddings"] == [[3.0, 1.0], [1.0, 1.0]]
    assert made["n_embd"] == 2
    assert made["pooling"] == fake_llm.asked["pooling"] == "mean"
    assert fake_llm.asked["normalise"] is True
    shown = run("embed", tiny_model, "-p", "abc", "-p", "a").stdout
    assert "0.8944" in shown  # 4 / sqrt(10 * 2)
    lines = tmp_path / "lines.txt"
    lines.write_text("one\n\ntwo\n")
    assert run("embed", tiny_model, "-f", str(lines), "--pooling", "cls").exit_code == 0
    assert fake_llm.asked["texts"] == ["one", "two"]
    assert fake_llm.asked["pooling"] == "cls"
    piped = run("embed", tiny_model, "-p", "-", input="piped")
    assert fake_llm.asked["texts"] == ["piped"]
    assert "cosines" not in piped.stdout
    many = run("embed", tiny_model, *["-p", "a"] * 9)
    assert "9 texts, 2 numbers each\n" in many.stdout


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ([], "give either texts (-p) or a file"),
        (["-p", "a", "-f", "b"], "give either texts (-p) or a file"),
        (["-p", "a", "--pooling", "max"], "max"),
    ],
)
def test_embed_refuses(
    run: Run, fake_llm: Any, tiny_model: str, args: list[str], told: str
) -> None:
    result = run("embed", tiny_model, *args)
    assert result.exit_code == 2
    assert told in " ".join(result.stderr.split())


def test_quantize(run: Run, tiny_model: str, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    made = document(run("quantize", tiny_model, str(out), "--type", "q8_0", "--json"))
    assert made["path"] == str(out)
    assert made["type"] == "Q8_0"
    assert made["n_bytes_after"] < made["n_bytes_before"]
    assert 0 < made["relative_error"] < 0.02
    assert document(run("info", str(out), "--json"))["runs"]
    again = run("quantize", tiny_model, str(out), "--type", "Q8_0")
    assert again.exit_code == 1
    assert "--force replaces it" in again.stderr
    assert "relative error" in run("quantize", tiny_model, str(out), "--type=F16", "--force").stdout
    twice = run("quantize", str(out), str(tmp_path / "tq.gguf"), "--type", "tq2_0")
    assert "no whole number of its blocks" in twice.stderr
    refused = run("quantize", tiny_model, str(tmp_path / "x.gguf"), "--type", "Q3_K")
    assert refused.exit_code == 1
    assert "expected one of F32, F16" in refused.stderr


@pytest.mark.parametrize("name", ["Q4_K", "q5_k", "Q6_K"])
def test_quantize_to_a_k_quant(run: Run, tmp_path: Path, name: str) -> None:
    wide = write_tiny_gguf(tmp_path / "in.gguf", n_layers=1, n_embd=256, n_ff=512)
    out = tmp_path / "out.gguf"
    made = document(run("quantize", str(wide), str(out), "--type", name, "--json"))
    assert made["type"] == name.upper()
    assert set(made["tensors"]) == {"F32", name.upper()}
    assert not made["fallbacks"]
    assert 0 < made["relative_error"] < 0.08
    assert name.upper() in run("quantize", "--help").stdout
    assert document(run("info", str(out), "--json"))["runs"]


def test_quantize_into_parts_and_back(run: Run, tmp_path: Path) -> None:
    whole = write_tiny_gguf(tmp_path / "in.gguf", n_layers=8, n_embd=256, n_ff=512)
    out = str(tmp_path / "out.gguf")
    args = ("quantize", str(whole), out, "--type", "COPY", "--split-max-size")
    made = document(run(*args, "1M", "--json"))
    n_parts = len(made["paths"])
    assert n_parts > 2
    assert made["path"] == made["paths"][0] == out.replace(".", f"-00001-of-{n_parts:05}.")
    assert made["relative_error"] == 0
    assert "is there already" in run(*args, "1M").stderr
    assert f"and {n_parts - 1} more: COPY" in run(*args, "1M", "--force").stdout
    back = document(run("quantize", made["path"], out, "--type", "COPY", "--json"))
    assert back["n_bytes_after"] == made["n_bytes_before"]
    for size in ("", "0G", "4", "1.5G", "-1G", "4T"):
        refused = run(*args, size)
        assert refused.exit_code == 2
        assert "whole megabytes or gigabytes" in " ".join(refused.stderr.split())


def test_quantize_to_a_mixture(run: Run, tmp_path: Path) -> None:
    wide = write_tiny_gguf(tmp_path / "in.gguf", n_layers=2, n_embd=256, n_ff=512)
    out = str(tmp_path / "out.gguf")
    made = document(run("quantize", str(wide), out, "--type", "q4_k_m", "--json"))
    assert set(made["tensors"]) == {"F32", "Q4_K", "Q6_K"}
    assert document(run("info", out, "--json"))["runs"]


def test_info(run: Run, tiny_model: str) -> None:
    made = document(run("info", tiny_model, "--json"))
    assert made["runs"]
    assert made["n_bytes"] == Path(tiny_model).stat().st_size
    assert made["hparams"]["arch"] == "llama"
    assert made["tensors"]["n_bytes"] == sum(row["n_bytes"] for row in made["tensors"]["types"])
    full = str(made["hparams"]["context_length"])
    cpu, cuda = made["needs"]["cpu"], made["needs"]["cuda"]
    assert cpu["kv_bytes"][full] == 2 * cuda["kv_bytes"][full]
    shown = run("info", tiny_model).stdout
    assert "n_layers" in shown
    assert "memory needed" in shown


def test_info_of_files_that_do_not_run(run: Run, shared_data: Path) -> None:
    vocab = shared_data / "vocab" / "ggml-vocab-gpt-2.gguf"
    made = document(run("info", str(vocab), "--json"))
    assert not made["runs"]
    assert "vocabulary" in made["problem"]
    assert made["tokenizer"]["vocab_size"] == 50257
    assert "m40llm cannot run it" in run("info", str(vocab)).stdout


def test_pull_list(run: Run, tmp_path: Path) -> None:
    made = document(run("pull", "--list", "--json"))
    assert made["cache_dir"] == str(tmp_path / "cache")
    assert made["models"][0]["name"] == "smollm2"
    assert made["models"][0]["path"] is None
    assert "not pulled yet" in run("pull", "--list").stdout


def test_the_device_and_its_switches(
    run: Run, fake_llm: Any, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    load = classmethod(lambda cls, model, **options: asked.append(options) or cls(model))
    monkeypatch.setattr(fake_llm, "load", load)
    for verb in ("generate", "logits", "perplexity"):
        text = ["-p", "hello there"]
        run(verb, tiny_model, *text)
        run(verb, tiny_model, *text, "--device", "cuda:1", "--cublas", "--require-sm52")
        run(verb, tiny_model, *text, "--no-cublas")
        told = [(each["device"], each["cublas"], each["require_sm52"]) for each in asked]
        assert told == [("auto", None, False), ("cuda:1", True, True), ("auto", False, False)]
        asked.clear()


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--device", "cpu", "--cublas"], "error: --cublas: expected a CUDA card"),
        (["--device", "emulator", "--require-sm52"], "error: --require-sm52: expected a CUDA card"),
        (["--device", "cpu", "--max-seq-len", "129"], "error: --max-seq-len: expected 1 to 128"),
        (["--device", "cpu", "--gpu-layers", "1"], "error: --gpu-layers: expected a card"),
        (["--fit", "--max-seq-len", "64"], "error: --fit: it chooses the context"),
        (["--gpu-layers", "3"], "error: --gpu-layers: expected 0 to 2"),
    ],
)
def test_failures_name_the_flag(run: Run, tiny_model: str, args: list[str], told: str) -> None:
    result = run("generate", tiny_model, "-p", "a", *args, "--json")
    assert result.exit_code == 1
    assert result.stderr.startswith(told)
    assert json.loads(result.stdout)["error"]["message"] in result.stderr


def test_every_flag_exists(run: Run) -> None:
    shown = run("generate", "--help").stdout + run("serve", "--help").stdout
    for flag in flags.FLAGS.values():
        assert flag in shown


def test_doctor_names_the_driver_of_each_card(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    card = {"index": 0, "name": "Tesla M40", "compute_capability": [5, 2], "memory_bytes": 12 << 30}
    driver = {
        "is_found": True,
        "release": "470.256.02",
        "cuda_version": "11.4",
        "cards": [card, card | {"index": 1, "name": "Tesla K80", "compute_capability": [3, 7]}],
        "problem": None,
    }
    monkeypatch.setattr(doctor, "find_driver", lambda: copy.deepcopy(driver))
    monkeypatch.setattr(requirements, "toolkit_major", lambda: 12)
    made = document(run("doctor", "--json"))
    m40, k80 = made["driver"]["cards"]
    assert m40["driver_wanted"] == "525.60.13 or newer, up to the 580 branch"
    assert "driver 470.256.02 (CUDA 11.4) is too old" in m40["refused"]
    assert "compute capability is 3.7" in k80["refused"]
    advice = {item["what"].split(":")[0]: item["command"] for item in made["advice"]}
    assert advice["Tesla M40"] == "sudo apt install nvidia-driver-580"
    assert advice["Tesla K80"].endswith("--device cpu")
    shown = run("doctor").stdout
    assert "driver wanted: 525.60.13 or newer, up to the 580 branch" in shown


def test_doctor_names_the_assembler_that_is_missing(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = {"index": 0, "name": "Tesla M40", "compute_capability": [5, 2], "memory_bytes": 12 << 30}
    driver = {"is_found": True, "release": "535.183.01", "cuda_version": "12.2", "cards": [card]}
    monkeypatch.setattr(doctor, "find_driver", lambda: copy.deepcopy(driver | {"problem": None}))
    monkeypatch.setattr(requirements, "toolkit_major", lambda: 12)
    monkeypatch.setattr(requirements, "compiler_version", lambda toolkit: (12, 9))
    for assembles, wanted in [(True, None), (False, "pip install -U nvidia-nvjitlink-cu12")]:
        monkeypatch.setattr(requirements, "nvjitlink_assembles", lambda toolkit, a=assembles: a)
        advice = document(run("doctor", "--json"))["advice"]
        told = {item["what"].split(":")[0]: item["command"] for item in advice}
        assert told.get("Tesla M40") == wanted


def test_downloads_show_their_bytes() -> None:
    assert bytes_done(BytesDone(12_340_000, 98_400_000)) == " 12.3 / 98.4 MB"
    assert bytes_done(BytesDone(99_000_000, 98_400_000)) == " 98.4 / 98.4 MB"
    assert bytes_done(0.5) == ""
    assert BytesDone(1, 4) == 0.25


def test_doctor(run: Run) -> None:
    made = document(run("doctor", "--json"))
    assert made["packages"]["numpy"]
    assert made["cache"]["is_writable"]
    assert any(item["command"] == "m40llm pull smollm2" for item in made["advice"])
    assert "NVIDIA driver" in run("doctor").stdout


@pytest.mark.parametrize("verb", ["generate", "chat"])
def test_lora(verb: str, run: Run, tiny_model: str, fake_llm: Any, tmp_path: Path) -> None:
    text = ["-p", "x"] if verb == "generate" else []
    file = tmp_path / "b.gguf"
    missing = run(verb, tiny_model, *text, "--lora", str(file), input="x\n")
    assert "error: --lora: no such file" in missing.stderr
    file.touch()
    done = run(verb, tiny_model, *text, "--lora", str(file), "--lora-scale", "0.5", input="x\n")
    assert done.exit_code == 0, done.stderr
    assert fake_llm.asked["lora"] == "b times 0.5"
    run(verb, tiny_model, *text, input="x\n")
    assert fake_llm.asked["lora"] is None
    alone = run(verb, tiny_model, *text, "--lora-scale", "2", input="x\n")
    assert alone.exit_code != 0
    assert "error: --lora-scale: expected --lora beside it" in alone.stderr


@pytest.mark.parametrize("verb", ["generate", "chat"])
def test_constraints(verb: str, run: Run, tiny_model: str, fake_llm: Any, tmp_path: Path) -> None:
    text = ["-p", "x"] if verb == "generate" else []
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "integer"}')
    done = run(verb, tiny_model, *text, "--json-schema", str(schema), input="x\n")
    assert done.exit_code == 0, done.stderr
    if verb == "generate":
        assert fake_llm.asked["params"].json_schema == '{"type": "integer"}'
    both = run(verb, tiny_model, *text, "--json-schema", str(schema), "--regex", "a", input="x\n")
    assert both.exit_code == 2
    assert "--regex: expected no json_schema beside it" in both.stderr
    none = run(verb, tiny_model, *text, "--lark", str(tmp_path / "none"), input="x\n")
    assert none.exit_code != 0
    assert "--lark: cannot read" in none.stderr
