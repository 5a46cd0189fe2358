"""Every kernel signature in use, compiled for sm_52: no FP64, no spill, within its registers."""

import importlib
import re
from pathlib import Path

import pytest
from sm52_assembly import Signature, assemble

from m40llm.kernels import contract

MAX_SHARED_BYTES = 48 * 1024
SIGNATURES: list[Signature] = [
    signature
    for path in sorted(Path(__file__).parent.glob("signatures_*.py"))
    for signature in importlib.import_module(path.stem).SIGNATURES
]


# Nothing launches it yet but its own tests; it is here once it is what decodes.
NOT_IN_USE = {"decode_program"}


def test_every_kernel_is_here() -> None:
    """A kernel that no SIGNATURES name would be assembled by nobody before a card does it."""
    kernels = Path(contract.__file__).parent.rglob("*.py")
    made = {
        name for path in kernels for name in re.findall(r"return Kernel\((\w+)", path.read_text())
    }
    assert len(made) > 20
    assert made - NOT_IN_USE == {signature.kernel.name for signature in SIGNATURES}


@pytest.mark.parametrize("signature", SIGNATURES, ids=str)
def test_sm52(signature: Signature) -> None:
    assembled = assemble(signature)
    assert not re.findall(r".*\.f64\b.*", assembled.ptx)
    assert assembled.spill_bytes == 0
    assert assembled.shared_bytes <= MAX_SHARED_BYTES
    assert signature.kernel.registers is not None, "the contract states a budget of registers"
    assert assembled.registers <= signature.kernel.registers
    n_blocks = assembled.blocks_per_sm(signature.n_threads)
    assert n_blocks >= 1
    print(
        f"{signature}: {assembled.registers} registers, {assembled.shared_bytes} bytes shared, "
        f"{n_blocks * signature.n_threads} threads an SM"
    )
