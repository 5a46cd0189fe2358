"""A kernel's code: compiled once, then found on disk."""

from pathlib import Path

import pytest
from numba import types

from m40llm.errors import DeviceError
from m40llm.kernels import add_bias
from m40llm.sm52 import assembly, code
from m40llm.sm52.assembly import assemble
from m40llm.sm52.code import code_of

TYPES = (types.Array(types.float32, 1, "C"), types.Array(types.float32, 2, "C"))


def test_code_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M40LLM_HOME", str(tmp_path))
    kernel = add_bias._compile()
    made = code_of(kernel, TYPES, (5, 2), None)
    assert 0 < made.registers <= add_bias.MAX_REGISTERS
    assert (made.spill_bytes, made.shared_bytes, made.listing) == (0, 0, None)
    monkeypatch.setattr(code, "assemble", lambda *args: pytest.fail("compiled again"))
    assert code_of(kernel, TYPES, (5, 2), None) == made
    tool = tmp_path / "tool"
    tool.write_text('#!/bin/sh\nhead -c4 "$2" | tail -c3\necho " /*0008*/ EXIT ;"\n')
    tool.chmod(0o755)
    listing = code_of(kernel, TYPES, (5, 2), tool).listing
    assert listing is not None
    assert [one.name for one in listing.instructions] == ["EXIT"], "of a cubin, which is an ELF"


def test_what_the_assembler_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "ptx_of", lambda *args: ("kernel", ".version 1.0 nonsense"))
    with pytest.raises(DeviceError, match="kernel add_bias: ptxas: ptxas"):
        assemble(add_bias._compile(), TYPES)


def test_no_assembler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "files", lambda name: [])
    assembly.ptxas.cache_clear()
    with pytest.raises(DeviceError, match=r"nvidia-cuda-nvcc-cu12, whose ptxas .* is missing: pip"):
        assembly.ptxas()
