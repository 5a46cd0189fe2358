"""nvdisasm: where it is looked for, and what is said where it does not do."""

from pathlib import Path

import pytest

from m40llm.errors import DeviceError, RequestError
from m40llm.hub.tools import NVDISASM
from m40llm.sm52 import disassembler
from m40llm.sm52.disassembler import VARIABLE, disassemble, find_disassembler


def script(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without one."""
    monkeypatch.setenv("M40LLM_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    for name in (VARIABLE, "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(disassembler.shutil, "which", lambda name: None)


def test_the_order_in_which_it_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_disassembler() is None
    toolkit = script(tmp_path / "toolkit" / "bin" / "nvdisasm", "")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))
    assert find_disassembler() == toolkit
    monkeypatch.setattr(disassembler.shutil, "which", lambda name: "/opt/nvdisasm")
    assert find_disassembler() == Path("/opt/nvdisasm")
    pulled = tmp_path / "cache" / "tools" / "nvdisasm-12.4"
    pulled.parent.mkdir(parents=True)
    with pulled.open("wb") as file:
        file.truncate(NVDISASM.n_bytes)
    assert find_disassembler() == pulled
    named = script(tmp_path / "mine", "")
    monkeypatch.setenv(VARIABLE, str(named))
    assert find_disassembler() == named


def test_a_variable_that_names_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "/no/such/file")
    with pytest.raises(RequestError, match="M40LLM_NVDISASM: expected the path of nvdisasm"):
        find_disassembler()


def test_what_it_says(tmp_path: Path) -> None:
    tool = script(tmp_path / "tool", 'echo "$1"; cat "$2"')
    assert disassemble(b"cubin", tool) == "-c\ncubin"
    broken = script(tmp_path / "broken", "echo unknown architecture >&2; exit 3")
    with pytest.raises(DeviceError, match=r"broken: unknown architecture; CUDA 13's does not know"):
        disassemble(b"cubin", broken)
