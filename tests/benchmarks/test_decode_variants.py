"""Rows are made ready together and timed one after another; times mean little on the emulator."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import decode_variants
import pytest
from decode_variants import Variant, in_turn

REPOSITORY = Path(__file__).parents[2]
WORKER = """
import pathlib, sys, time
log = pathlib.Path(sys.argv[1]).open("a", buffering=1)
time.sleep(float(sys.argv[2]))
if len(sys.argv) > 3: sys.exit("broken")
log.write("ready\\n")
print("ready", flush=True)
if sys.stdin.readline() == "go\\n":
    log.write("go\\n")
    print(sys.argv[2], flush=True)
"""


def test_nobody_times_before_all_are_ready(tmp_path: Path) -> None:
    log = tmp_path / "log"
    given = (["0"], ["0.3"], ["0.1", "breaks"])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(log), *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for args in given
    ]
    assert list(in_turn(processes)) == ["0", "0.3", ""]
    assert log.read_text().split() == ["ready", "ready", "go", "go"]
    assert all(process.returncode is not None for process in processes)


def run(monkeypatch: pytest.MonkeyPatch, out: Path, *arguments: str) -> None:
    here = [f"here={REPOSITORY}", "--shape", "tiny", "--device", "emulator", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["decode_variants.py", *here, *arguments])
    decode_variants.main()


def test_a_row_of_the_emulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "rows.jsonl"
    with pytest.raises(SystemExit, match="0"):
        run(monkeypatch, out, "--type", "F16", "--tokens", "8")
    (row,) = map(json.loads, out.read_text().splitlines())
    assert (row["variant"], row["type"], row["n_tokens"]) == ("here", "F16", 8)
    assert row["tokens_per_s"] > 0


def test_a_row_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="1"):  # few distinct tokens, of so small a model
        run(monkeypatch, tmp_path / "rows.jsonl", "--type", "F16")
    told = capfd.readouterr().err
    assert "distinct tokens of 128" in told
    assert "here F16: failed, see above" in told
    assert not (tmp_path / "rows.jsonl").exists()


def test_no_type(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, Path("rows"), "--type", "F16,Q9")
    assert "expected some of F32" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["here", "=.", "here=", "here=/nowhere", "here=.,NAME"])
def test_no_variant(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"expected LABEL=FOLDER|no m40llm in"):
        Variant.of(text)


def test_a_variant_by_a_variable() -> None:
    variant = Variant.of(f"wide={REPOSITORY},WIDTH=4,DEPTH=2")
    assert variant == Variant("wide", REPOSITORY, {"WIDTH": "4", "DEPTH": "2"})
