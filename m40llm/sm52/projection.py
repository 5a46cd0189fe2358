"""How long a launch would take on a card: a range, from a stated model. docs/sm52.md explains it.

    memory   bytes / (peak * what a kernel that only reads reaches of it, at best and at worst)
    issue    issue slots, at least / boost clock; at most * STALLS / base clock, the last wave of
             blocks taking as long as a whole one
    latency  what a block takes alone, times the waves of blocks / base clock: a latency of the
             memory for each round of the hot loop, DEPENDENT clocks for each instruction;
             at least one latency of the memory / boost clock

Where the emulator has counted (counting.py), an access of shared memory takes as many rounds as it
has wavefronts, and one of device memory a round for LINE_SECTORS sectors, at best and at worst.

A launch takes as long as the longest of the three, and GAP_S behind it.
"""

import math
from dataclasses import dataclass
from typing import Final

from m40llm.kernels.contract import ceil_div
from m40llm.sm52.cards import CardSpec
from m40llm.sm52.code import Code
from m40llm.sm52.counting import Counted
from m40llm.sm52.imagined import Launch
from m40llm.sm52.occupancy import WARP_SIZE, Occupancy, occupancy
from m40llm.sm52.pipes import Rounds, pipes_of, slots
from m40llm.sm52.sass import Listing, Loop

ECC_SHARE: Final = 0.80  # of the bandwidth, what ECC leaves (CUDA C++ Best Practices Guide)
# Assumptions, see docs/sm52.md:
LATENCY: Final = 400  # clocks of a load from device memory
DEPENDENT: Final = 3  # clocks between two instructions of a warp that has its scheduler alone
STALLS: Final = 4 / 3  # a quarter of the slots stay empty at worst
GAP_S: Final = (0.5e-6, 5e-6)  # between two launches
LINE_SECTORS: Final = 4  # of 32 bytes, that one round of a load serves
FLOPS_AN_FFMA: Final = 2


@dataclass(frozen=True)
class Range:
    """Seconds, from the shortest time to the longest."""

    low: float
    high: float

    def __add__(self, other: "Range") -> "Range":
        return Range(self.low + other.low, self.high + other.high)

    def __mul__(self, n: int) -> "Range":
        return Range(self.low * n, self.high * n)


ZERO: Final = Range(0.0, 0.0)


@dataclass(frozen=True)
class Projection:
    """Of one launch. seconds: with the gap behind it.

    bound    what takes longest: memory, issue or latency
    parts    the time that each of them would take alone
    """

    occupancy: Occupancy
    seconds: Range
    bound: str
    parts: dict[str, Range]


def project(
    launch: Launch, code: Code, card: CardSpec, counted: Counted | None = None
) -> Projection:
    """The launch on this card, where its kernel has this code."""
    held = occupancy(
        code.registers, code.shared_bytes + launch.shared_bytes, launch.n_threads, card.sm
    )
    waves = launch.n_blocks / (card.n_sms * max(held.n_blocks, 1))
    parts = {"memory": _memory(launch, card)}
    if code.listing is not None:
        path = _Path(launch, code.listing)
        parts["issue"] = _issue(launch, path, card, waves, counted)
        parts["latency"] = _latency(launch, path, card, waves)
    low, high = (max(getattr(part, end) for part in parts.values()) for end in ("low", "high"))
    bound = max(parts, key=lambda name: parts[name].low + parts[name].high)
    return Projection(held, Range(low, high) + Range(*GAP_S), bound, parts)


def _memory(launch: Launch, card: CardSpec) -> Range:
    worst, best = card.read_shares
    if card.has_ecc:
        worst *= ECC_SHARE
    n_bytes = launch.work.n_bytes
    return Range(n_bytes / (card.peak * best), n_bytes / (card.peak * worst))


class _Path:
    """What the warps of a launch run through: rounds of the hot loop, and what is in no loop.

    rounds  of all warps together: as many as the FLOPs take, else as the bytes do
    """

    def __init__(self, launch: Launch, listing: Listing) -> None:
        loop = listing.hot_loop
        self.n_warps = launch.n_blocks * ceil_div(launch.n_threads, WARP_SIZE)
        self.hot = () if loop is None else loop.body
        self.rounds = 0.0 if loop is None else _rounds(launch, loop, self.n_warps)
        self.outside = listing.straight


def _rounds(launch: Launch, loop: Loop, n_warps: int) -> float:
    if launch.work.n_flops and loop.n_ffma:
        return launch.work.n_flops / (FLOPS_AN_FFMA * WARP_SIZE * loop.n_ffma)
    if loop.loaded_bytes:
        return launch.work.n_bytes / (WARP_SIZE * loop.loaded_bytes)
    return float(n_warps)


def _issue(
    launch: Launch, path: _Path, card: CardSpec, waves: float, counted: Counted | None
) -> Range:
    """Slots of the hot loop; at worst, of what is in no loop besides, and of the last wave."""
    pipes, slots_a_clock = pipes_of(card.capability), card.n_sms * card.sm.n_schedulers
    rounds = None if counted is None else _rounds_of(counted)
    least, most = slots(path.hot, pipes, rounds)
    outside = path.n_warps * slots(path.outside, pipes, rounds)[1]
    at_least = path.rounds * least / slots_a_clock
    at_most = (path.rounds * most + outside) * STALLS / slots_a_clock
    an_sm = launch.n_blocks / card.n_sms
    low = at_least * max(1 / an_sm, 1.0)  # fewer blocks than SMs
    high = at_most * max(_whole(waves if waves > 1 else an_sm), launch.work.largest / max(waves, 1))
    return Range(low / (card.boost_mhz * 1e6), high / (card.base_mhz * 1e6))


def _rounds_of(counted: Counted) -> Rounds:
    return Rounds(max(counted.sectors / LINE_SECTORS, 1.0), max(counted.wavefronts, 1.0))


def _whole(n: float) -> float:
    """How much longer it takes where the last of n portions takes as long as a whole one."""
    return math.ceil(n) / n


def _latency(launch: Launch, path: _Path, card: CardSpec, waves: float) -> Range:
    """A warp's rounds one after another; beside them one load for what it begins with."""
    rounds = path.rounds / path.n_warps
    n_instructions = rounds * len(path.hot) + len(path.outside)
    alone = (1 + rounds) * LATENCY + n_instructions * DEPENDENT
    clocks = alone * max(math.ceil(waves), launch.work.largest)
    return Range(LATENCY / (card.boost_mhz * 1e6), clocks / (card.base_mhz * 1e6))
