"""Compiled kernels on disk: found again, never trusted when broken."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba import cuda, float32

from m40llm.device.emulator import Emulator, build
from m40llm.device.emulator.frontend import argument_type, numba_ir
from m40llm.device.emulator.host_ir import HostIR, host_ir


def double(x):
    t = cuda.grid(1)
    x[t] = x[t] * float32(2)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("M40LLM_HOME", str(tmp_path))
    return tmp_path / "emulator"


def ir() -> HostIR:
    return host_ir(numba_ir(double, (argument_type(np.zeros(1, np.float32)),), {}))


def no_compiler(*_: object) -> None:
    raise AssertionError("compiled again")


def test_compiled_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build.build(ir(), checks=True, steps=False)
    assert len(list(folder.iterdir())) == 1
    monkeypatch.setattr(build, "_compile", no_compiler)
    again = build.build(ir(), checks=True, steps=False)
    assert again.sites == first.sites
    with pytest.raises(AssertionError, match="compiled again"):
        build.build(ir(), checks=False, steps=False)


@pytest.mark.parametrize("damage", ["empty", "truncated", "flipped", "alien"])
def test_a_broken_entry_is_made_anew(folder: Path, damage: str) -> None:
    build.build(ir(), checks=True, steps=False)
    (path,) = folder.iterdir()
    sound = path.read_bytes()
    flipped = bytearray(sound)
    flipped[len(sound) // 2] ^= 1
    broken = {"empty": b"", "truncated": sound[:-9], "flipped": flipped, "alien": b"a\nb\nc"}
    path.write_bytes(bytes(broken[damage]))
    build.build(ir(), checks=True, steps=False)
    assert path.read_bytes() == sound


def test_a_folder_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("M40LLM_HOME", str(tmp_path / "file"))
    assert build.build(ir(), checks=True, steps=False).address


PROGRAM = """
import sys
import numpy as np
sys.path.insert(0, {tests!r})
from test_cache import argument_type, build, double, no_compiler, numba_ir
from m40llm.device.emulator import Emulator
if {warm}:
    numba_ir(double, (argument_type(np.zeros(1, np.float64)),), {{}})
    build._compile = no_compiler
x = np.ones(64, np.float32)
Emulator().launch(double, 2, 32, (x,))
assert (x == 2).all()
"""


def test_another_process_finds_it(folder: Path) -> None:
    """Names that Numba numbers by process do not matter."""
    for warm in (False, True):
        tests = str(Path(__file__).parent)
        program = PROGRAM.format(tests=tests, warm=warm)
        subprocess.run([sys.executable, "-c", program], check=True)
    assert len(list(folder.iterdir())) == 1


def test_one_function_two_signatures() -> None:
    for dtype in (np.float32, np.float64):
        x = np.ones(32, dtype)
        Emulator().launch(double, 1, 32, (x,))
        assert (x == 2).all()
