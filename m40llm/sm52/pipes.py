"""How many issue slots of an SM's schedulers instructions take: the least, and the most.

A slot is one clock of one of the four schedulers: a warp's instruction that 128 lanes of the SM
carry out takes one, one that has 32 of them takes four. Rates are those of the CUDA C++ Programming
Guide, "Arithmetic Instructions"; what it does not list is taken to have the full rate, and moves of
bytes and shifted sums that of shifts.

least  the units work beside each other, and a scheduler issues two instructions a clock where it
       can (Maxwell and Pascal): the busiest unit counts
most   one instruction a clock, and each load or store takes as many rounds as it has words
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from m40llm.sm52.sass import Instruction

_LANES: Final = 128  # of an SM, at the full rate
_WORD: Final = 4  # bytes
_MEMORY: Final = ("LD", "LDG", "LDS", "LDL", "LDC", "ST", "STG", "STS", "STL", "ATOM", "RED")
# Issued, and carried out by no lanes.
_CONTROL: Final = (
    *("BRA", "BRX", "JMP", "CAL", "CALL", "RET", "EXIT", "BRK", "PBK", "SSY", "SYNC", "BSSY"),
    *("BSYNC", "BREAK", "WARPSYNC", "BAR", "DEPBAR", "MEMBAR", "NOP"),
)


@dataclass(frozen=True)
class Pipes:
    """lanes: by opcode, those of the SM that carry it out; memory_lanes: that load and store."""

    issues: int  # instructions that a scheduler issues a clock, at most
    lanes: dict[str, int]
    memory_lanes: int = 32

    def lanes_of(self, opcode: str) -> int:
        return self.memory_lanes if opcode in _MEMORY else self.lanes.get(opcode, _LANES)


def _rates(**by_lanes: str) -> dict[str, int]:
    return {name: int(n[1:]) for n, names in by_lanes.items() for name in names.split()}


MAXWELL: Final = Pipes(
    issues=2,
    lanes=_rates(
        _64="SHL SHR SHF BFE BFI ISETP FSETP ICMP IMNMX FMNMX PRMT ISCADD LEA",
        _32="I2F F2I F2F I2I MUFU RRO POPC FLO SHFL",
        _4="DFMA DADD DMUL",
    ),
)
HOPPER: Final = Pipes(
    issues=1,
    lanes=_rates(
        _64="IADD3 IMAD LOP3 SHF LEA PRMT ISETP FSETP IMNMX VIMNMX FMNMX SEL I2FP I2F F2I F2F I2I",
        _32="SHFL",
        _16="MUFU POPC FLO",
    ),
)


def pipes_of(capability: tuple[int, int]) -> Pipes:
    return HOPPER if capability >= (7, 0) else MAXWELL


@dataclass(frozen=True)
class Rounds:
    """That an access takes of the units that load and store, where they were counted: it is then
    not taken to be one at best, and one a word at worst."""

    device: float
    shared: float

    def of(self, opcode: str) -> float | None:
        """None for what was not counted: constants, local memory, atomics."""
        if opcode in ("LDS", "STS"):
            return self.shared
        return self.device if opcode in ("LD", "LDG", "ST", "STG") else None


def slots(
    code: Iterable[Instruction], pipes: Pipes, counted: Rounds | None = None
) -> tuple[float, float]:
    """(least, most) issue slots that a warp takes for these instructions."""
    n_issued, n_words = 0, 0.0
    busy: dict[int, float] = defaultdict(float)  # by lanes: slots of the unit that has as many
    for one in code:
        n_issued += 1
        if one.name in _CONTROL:
            continue
        lanes = pipes.lanes_of(one.name)
        rounds = counted.of(one.name) if counted else None
        busy[lanes] += (rounds or 1.0) * _LANES / lanes
        if one.name in _MEMORY:
            n_words += rounds or max(one.n_bytes // _WORD, 1)
    busiest = max(busy.values(), default=0.0)
    most = max(float(n_issued), busiest, n_words * _LANES / pipes.memory_lanes)
    return max(n_issued / pipes.issues, busiest), most
