"""What the emulator counts of a launch: sectors of device memory, wavefronts of shared memory.

The very kernel runs with the very shapes, of its grid the first blocks alone; weights and
activations are zeros, which take no room, and indices are what the host has written. So nothing is
counted that only a launch's last block does, and what depends on values is that of zeros. Kept on
disk: a model's kernels take some minutes, most of it to compile them for the emulator.
"""

from dataclasses import asdict, dataclass
from inspect import signature
from typing import Any, Final

import numpy as np

from m40llm.device.emulator.card import EmulatedCard
from m40llm.device.emulator.counters import Counts, Traffic
from m40llm.device.gpu.disk_cache import entry_path, key_of, read_entry, write_entry
from m40llm.device.gpu.fingerprint import fingerprint
from m40llm.sm52.imagined import ALIGNMENT, Given, Launch

BLOCKS: Final = 2  # of each dimension of a grid
_HOLDS_ADDRESSES: Final = "code"  # a parameter whose words say where buffers are


@dataclass(frozen=True)
class Counted:
    """Of a launch, the mean of its requests; a request is what a warp loads or stores at once.

    sectors     of 32 bytes, a request of device memory touches: of 4 bytes a lane 4, of 16 bytes
                16, where lanes are neighbours in memory
    wavefronts  a request of shared memory takes: of 4 bytes a lane 1, of 16 bytes 4, where no two
                lanes want different words of a bank; 0.0 where there are no requests
    """

    sectors: float
    wavefronts: float


def counted(launch: Launch) -> Counted | None:
    """By the emulator, now or before; None for a launch whose arguments hold addresses."""
    if _HOLDS_ADDRESSES in signature(launch.kernel.function).parameters:
        return None
    identity, path = fingerprint(launch.kernel), None
    if identity is not None:
        given = [str(asdict(each)) for each in launch.given]
        shape = str((launch.grid, launch.n_threads, launch.shared_bytes, BLOCKS))
        path = entry_path("sm52-counts", key_of(identity, shape, *given))
        if stored := read_entry(path):
            return Counted(**stored[0])
    found = ratios(_run(launch))
    if path is not None:
        write_entry(path, asdict(found), b"")
    return found


def ratios(counts: Counts) -> Counted:
    """From what was counted."""
    moved = counts.global_loads + counts.global_stores
    shared = counts.shared_loads + counts.shared_stores
    return Counted(sectors=_a_request(moved), wavefronts=_a_request(shared))


def _a_request(traffic: Traffic) -> float:
    return traffic.pieces / traffic.requests if traffic.requests else 0.0


def _run(launch: Launch) -> Counts:
    card = EmulatedCard(checks=False, count=True)
    grid = tuple(min(n, BLOCKS) for n in launch.grid)
    args = [_argument(given) for given in launch.given]
    card.launch(launch.kernel, grid, launch.n_threads, *args, shared_bytes=launch.shared_bytes)
    counts = card.emulator.counts
    assert counts is not None, "of a card that counts"
    return counts


def _argument(given: Given) -> Any:
    """As a card would hold it: arrays begin at a multiple of ALIGNMENT. Zeros of a large one take
    memory where they are touched."""
    if given.shape is None:
        return given.value
    n_bytes = int(np.prod(given.shape)) * np.dtype(given.dtype).itemsize
    room = np.zeros(n_bytes + ALIGNMENT, np.uint8)
    first = -room.ctypes.data % ALIGNMENT
    array = room[first : first + n_bytes].view(given.dtype).reshape(given.shape)
    if given.value is not None:
        array[...] = np.frombuffer(given.value, given.dtype).reshape(given.shape)
    return array
