"""Every kernel signature in use, compiled for sm_52: no FP64, no spill, within its registers."""

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
from gguf import GGMLQuantizationType as GGMLType
from numba import types as numba_types
from signature import I32, U64_1, Signature

from m40llm.device.gpu.fingerprint import fingerprint
from m40llm.kernels import contract
from m40llm.kernels.program import run
from m40llm.kernels.program.form import N_THREADS, REGISTERS, Form
from m40llm.sm52.assembly import assemble
from m40llm.sm52.occupancy import occupancy

MAX_SHARED_BYTES = 48 * 1024
SIGNATURES: list[Signature] = [
    signature
    for path in sorted(Path(__file__).parent.glob("signatures_*.py"))
    for signature in importlib.import_module(path.stem).SIGNATURES
]


DECODE_PROGRAM = "decode_program"  # has a test of its own: it spills, at the ends of a step


def test_every_kernel_is_here() -> None:
    """A kernel that no SIGNATURES name would be assembled by nobody before a card does it."""
    kernels = Path(contract.__file__).parent.rglob("*.py")
    made = {
        name for path in kernels for name in re.findall(r"return Kernel\((\w+)", path.read_text())
    }
    assert len(made) > 20
    assert made - {DECODE_PROGRAM} == {signature.kernel.name for signature in SIGNATURES}


def test_every_kernel_is_kept_on_disk() -> None:
    """What has no fingerprint is compiled again by every process: 25 s for the decode program."""
    program = run._compile(Form((GGMLType.F16,), GGMLType.F16, 1, 32, 8, 64, 64, "interleaved"))
    for kernel in (program, *(signature.kernel for signature in SIGNATURES)):
        assert fingerprint(kernel) is not None, kernel.name


@pytest.mark.parametrize("signature", SIGNATURES, ids=str)
def test_sm52(signature: Signature) -> None:
    assembled = assemble(signature.kernel, signature.arg_types)
    assert not re.findall(r".*\.f64\b.*", assembled.ptx)
    assert assembled.spill_bytes == 0
    shared_bytes = assembled.shared_bytes + signature.shared_bytes
    assert shared_bytes <= MAX_SHARED_BYTES
    assert signature.kernel.registers is not None, "the contract states a budget of registers"
    assert assembled.registers <= signature.kernel.registers
    held = occupancy(assembled.registers, shared_bytes, signature.n_threads)
    assert held.n_blocks >= 1
    print(
        f"{signature}: {assembled.registers} registers, {shared_bytes} bytes shared, "
        f"{held.n_threads} threads an SM"
    )


ALL_THERE_IS: dict[str, Any] = {
    "qk_norm": "head",
    "has_factors": True,
    "activation": "gelu",
    "has_post_norms": True,
}


@pytest.mark.parametrize(
    ("types", "n_seqs", "more"),
    [
        ((GGMLType.F16,), 1, {}),
        ((GGMLType.Q4_K, GGMLType.Q6_K), 8, {}),
        ((GGMLType.Q8_0,), 1, ALL_THERE_IS),
        ((GGMLType.Q8_0,), 1, {"qk_norm": "row", "has_post_norms": True}),
    ],
    ids=["F16", "Q4_K, 8 sequences", "as gemma3", "as olmo2"],
)
def test_sm52_of_the_decode_program(
    types: tuple[GGMLType, ...], n_seqs: int, more: dict[str, Any]
) -> None:
    """A block an SM: of 128 registers a thread, and no more shared memory than a block may have."""
    shape = (GGMLType.F16, n_seqs, 32, 8, 64, 64)
    kernel = run._compile(Form(types, *shape, "interleaved", **more))
    assert kernel.name == DECODE_PROGRAM
    words = numba_types.Array(numba_types.int64, 2, "C")
    assembled = assemble(kernel, (words, I32, I32, I32, U64_1))
    assert not re.findall(r".*\.f64\b.*", assembled.ptx)
    assert assembled.shared_bytes <= MAX_SHARED_BYTES
    assert assembled.registers <= REGISTERS
    assert occupancy(assembled.registers, assembled.shared_bytes, N_THREADS).n_blocks == 1
