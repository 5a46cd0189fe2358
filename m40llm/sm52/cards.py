"""Cards by their data sheets: what a projection is made from. Sources: docs/sm52.md."""

from dataclasses import dataclass
from typing import Final

from m40llm.device.gpu.compiler import Capability
from m40llm.errors import RequestError
from m40llm.llm.cards import free_bytes

GIB: Final = 1 << 30


@dataclass(frozen=True)
class Multiprocessor:
    """What an SM has, and in what portions it is given out (CUDA's occupancy calculator).

    warp_unit      warps are reckoned in so many where registers are shared out: one a scheduler
    register_unit  registers that a warp takes at a time
    shared_unit    bytes of shared memory that a block takes at a time
    reserved_bytes shared memory that each block takes beside its own
    """

    n_schedulers: int = 4
    max_warps: int = 64
    max_blocks: int = 32
    n_registers: int = 65536
    shared_bytes: int = 96 * 1024
    warp_unit: int = 4
    register_unit: int = 256
    shared_unit: int = 256
    reserved_bytes: int = 0


GDDR5: Final = (0.70, 0.85)
HBM3: Final = (0.80, 0.93)  # 3,112 of 3,352 GB/s, measured on an H100
MAXWELL: Final = Multiprocessor()  # GM200; GP102 has as much
HOPPER: Final = Multiprocessor(shared_bytes=228 * 1024, shared_unit=128, reserved_bytes=1024)


@dataclass(frozen=True)
class CardSpec:
    """One card.

    capability   of the code that runs there
    peak         bytes a second that its memory is said to give
    has_ecc      in GDDR5 beside the data: it takes a sixteenth of the memory, and bandwidth
    read_shares  of the peak, what a kernel that only reads reaches: at worst, at best
    """

    name: str
    title: str
    capability: Capability
    n_sms: int
    base_mhz: int
    boost_mhz: int
    peak: float
    memory_bytes: int
    has_ecc: bool
    sm: Multiprocessor = MAXWELL
    read_shares: tuple[float, float] = GDDR5

    @property
    def free(self) -> int:
        """Bytes that a model may have, where ECC is as the card is sold."""
        return free_bytes(self.memory_bytes, has_ecc=self.has_ecc)


_CARDS: Final = (
    CardSpec("m40-24", "Tesla M40 24 GB", (5, 2), 24, 948, 1112, 288.4e9, 24 * GIB, True),
    CardSpec("m40-12", "Tesla M40 12 GB", (5, 2), 24, 948, 1112, 288.4e9, 12 * GIB, True),
    CardSpec("p40", "Tesla P40", (6, 1), 30, 1303, 1531, 347.1e9, 24 * GIB, True),
    CardSpec("titan-x", "GTX Titan X", (5, 2), 24, 1000, 1075, 336.6e9, 12 * GIB, False),
    CardSpec("h100", "H100 SXM", (9, 0), 132, 1590, 1980, 3352e9, 80 * GIB, False, HOPPER, HBM3),
    CardSpec("h200", "H200 SXM", (9, 0), 132, 1590, 1980, 4.8e12, 141 * 10**9, False, HOPPER, HBM3),
)
CARDS: Final = {card.name: card for card in _CARDS}
_DRIVER_NAMES: Final = {  # a part of what the driver calls it
    "m40-24": "Tesla M40",
    "m40-12": "Tesla M40",
    "p40": "Tesla P40",
    "titan-x": "GTX TITAN X",
    "h100": "H100",
    "h200": "H200",
}


def card_of(name: str) -> CardSpec:
    """RequestError for a name that is none."""
    if name not in CARDS:
        raise RequestError(f"card: expected one of {', '.join(CARDS)}, got {name!r}")
    return CARDS[name]


def card_like(driver_name: str, n_sms: int, memory_bytes: int) -> CardSpec | None:
    """The card that the driver calls so; of two of one name, that whose memory is nearer."""
    alike = [c for c in _CARDS if _DRIVER_NAMES[c.name] in driver_name and c.n_sms == n_sms]
    return min(alike, key=lambda card: abs(card.memory_bytes - memory_bytes), default=None)
