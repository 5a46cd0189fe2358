"""How many blocks of a kernel an SM holds at a time, and what it has too little of for more."""

from dataclasses import dataclass

from m40llm.kernels.contract import ceil_div
from m40llm.sm52.cards import MAXWELL, Multiprocessor

WARP_SIZE = 32


@dataclass(frozen=True)
class Occupancy:
    """limit: registers, shared memory, warps or blocks, whichever there would be too few of."""

    n_blocks: int
    n_warps: int
    limit: str

    @property
    def n_threads(self) -> int:
        return self.n_warps * WARP_SIZE


def occupancy(
    registers: int, shared_bytes: int, n_threads: int, sm: Multiprocessor = MAXWELL
) -> Occupancy:
    """Of blocks of n_threads with so many registers a thread and shared bytes a block.

    No block at all where one alone takes more than there is.
    """
    block_warps = ceil_div(n_threads, WARP_SIZE)
    fitting = {
        "registers": _register_warps(registers, sm) // block_warps,
        "shared memory": sm.shared_bytes // max(_shared(shared_bytes, sm), 1),
        "warps": sm.max_warps // block_warps,
        "blocks": sm.max_blocks,
    }
    limit = min(fitting, key=lambda what: fitting[what])
    return Occupancy(fitting[limit], fitting[limit] * block_warps, limit)


def _register_warps(registers: int, sm: Multiprocessor) -> int:
    """Warps that there are registers for: as many on each scheduler."""
    of_warp = ceil_div(max(registers, 1) * WARP_SIZE, sm.register_unit) * sm.register_unit
    return sm.n_registers // of_warp // sm.warp_unit * sm.warp_unit


def _shared(n_bytes: int, sm: Multiprocessor) -> int:
    return ceil_div(n_bytes + sm.reserved_bytes, sm.shared_unit) * sm.shared_unit
