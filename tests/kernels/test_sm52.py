"""Every kernel signature in use, compiled for sm_52: no FP64, no spill, within its budgets."""

import re
from pathlib import Path

import pytest
from all_signatures import KERNELS, PROGRAMS, SIGNATURES
from budgets import figures_of, read_budgets, regressions, slack_of
from signature import Signature

from m40llm.device.gpu.fingerprint import fingerprint
from m40llm.kernels import contract
from m40llm.kernels.program.form import REGISTERS
from m40llm.sm52.assembly import Assembled, assemble
from m40llm.sm52.occupancy import occupancy

MAX_SHARED_BYTES = 48 * 1024
TOOLS, BUDGETS = read_budgets()


def test_every_kernel_is_here() -> None:
    """A kernel that no signature names would be assembled by nobody before a card does it."""
    kernels = Path(contract.__file__).parent.rglob("*.py")
    made = {
        name for path in kernels for name in re.findall(r"return Kernel\((\w+)", path.read_text())
    }
    assert len(made) > 20
    assert made == {signature.kernel.name for signature in SIGNATURES}


def test_every_kernel_is_kept_on_disk() -> None:
    """What has no fingerprint is compiled again by every process: 25 s for the decode program."""
    for signature in SIGNATURES:
        assert fingerprint(signature.kernel) is not None, signature


@pytest.mark.parametrize("signature", KERNELS, ids=str)
def test_sm52(signature: Signature, disassembler: Path | None) -> None:
    assembled = assemble(signature.kernel, signature.arg_types)
    assert not re.findall(r".*\.f64\b.*", assembled.ptx)
    assert assembled.spill_bytes == 0
    shared_bytes = assembled.shared_bytes + signature.shared_bytes
    assert shared_bytes <= MAX_SHARED_BYTES
    assert signature.kernel.registers is not None, "the contract states a limit of registers"
    assert assembled.registers <= signature.kernel.registers
    held = occupancy(assembled.registers, shared_bytes, signature.n_threads)
    assert held.n_blocks >= 1
    _check_budget(signature, assembled, disassembler)


@pytest.mark.parametrize("signature", PROGRAMS, ids=str)
def test_sm52_of_the_decode_program(signature: Signature, disassembler: Path | None) -> None:
    """It spills, at the ends of a step. A block an SM: of 128 registers a thread, and no more
    shared memory than a block may have."""
    assembled = assemble(signature.kernel, signature.arg_types)
    assert not re.findall(r".*\.f64\b.*", assembled.ptx)
    assert assembled.shared_bytes <= MAX_SHARED_BYTES
    assert assembled.registers <= REGISTERS
    held = occupancy(assembled.registers, assembled.shared_bytes, signature.n_threads)
    assert held.n_blocks == 1
    _check_budget(signature, assembled, disassembler)


def _check_budget(signature: Signature, assembled: Assembled, tool: Path | None) -> None:
    name, got = str(signature), figures_of(signature, assembled, tool)
    print(f"{name}: {got}")
    missed = regressions(name, BUDGETS[name], got, slack_of(TOOLS))
    assert not missed, "\n".join(missed)
