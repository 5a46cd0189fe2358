"""Error texts: which thread of which block did what, at which line, to which array."""

import linecache
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from m40llm.device.emulator import records
from m40llm.device.emulator.errors import (
    AddressSpaceError,
    BarrierDivergenceError,
    EmulatorError,
    InactiveLaneError,
    KernelRaisedError,
    MisalignedAccessError,
    OutOfBoundsError,
    ReadOnlyWriteError,
    UninitialisedReadError,
    WarpDivergenceError,
)
from m40llm.device.emulator.memory import Allocation
from m40llm.device.emulator.source_lines import Location

if TYPE_CHECKING:
    from m40llm.device.emulator.pool import Pool

_KINDS: Final = {
    records.OUT_OF_BOUNDS: (OutOfBoundsError, "outside every live array"),
    records.UNINITIALISED: (UninitialisedReadError, "that nothing has written"),
    records.MISALIGNED: (MisalignedAccessError, "misaligned"),
    records.READ_ONLY: (ReadOnlyWriteError, "in a read-only array"),
    records.OTHER_SPACE: (
        AddressSpaceError,
        "in another address space than the instruction is for",
    ),
    records.STALE_READ: (
        ReadOnlyWriteError,
        "through the read-only cache, though this launch writes to the array",
    ),
}


@dataclass(frozen=True)
class Scene:
    """What a report needs to know of the launch."""

    kernel: str
    table: NDArray[Any]  # REGION records
    allocations: list[Allocation]
    names: dict[int, str]  # of the arguments, by address
    concurrent: bool

    def deadlock(self, pool: "Pool") -> str:
        """Which lines the threads of a launch wait at."""
        waiting = pool.threads[pool.threads["state"] != records.DONE]
        sites, counts = np.unique(waiting["site"], return_counts=True)
        where = "; ".join(
            f"{count} threads at {_line(pool, int(site))}"
            for site, count in zip(sites, counts, strict=True)
        )
        hint = "" if self.concurrent else " Blocks ran one after another: see concurrent_blocks."
        return f"{self.kernel}: deadlock: what is polled for never comes: {where}.{hint}"


def report(pool: "Pool", scene: Scene) -> EmulatorError:
    """The error of the thread that faulted."""
    thread, block = pool.faulty_thread(), pool.faulty_block()
    where = (
        f"{scene.kernel}, {_line(pool, int(thread['site']))}: block {_triple(block['ctaid'])}, "
        f"thread {_triple(thread['tid'])}"
    )
    fault = int(thread["fault"])
    if fault == records.BARRIER_DIVERGENCE:
        return BarrierDivergenceError(f"{where} waits here, {_others(pool, thread)}")
    if fault == records.WARP_DIVERGENCE:
        mask = f"{int(thread['mask']):#010x}"
        return WarpDivergenceError(
            f"{where} waits for the lanes of mask {mask}, {_others(pool, thread)}"
        )
    if fault == records.INACTIVE_LANE:
        lane = int(thread["fault_address"])
        return InactiveLaneError(f"{where} reads lane {lane}, which is not in this shuffle")
    if fault == records.NOT_IN_MASK:
        return WarpDivergenceError(
            f"{where}: its own lane is not in mask {int(thread['mask']):#010x}"
        )
    if fault == records.RAISED:
        return KernelRaisedError(f"{where}: the kernel raised an exception")
    kind, text = _KINDS[fault]
    n_bytes = int(thread["access"]) & records.SIZE_MASK
    verb = "reads" if int(thread["access"]) & records.READS else "writes"
    target = _target(pool, scene, int(thread["fault_address"]), block)
    return kind(f"{where} {verb} {n_bytes} bytes {text}: {target}")


def _line(pool: "Pool", site: int) -> str:
    sites = pool.program.code.sites
    location = sites[site] if site < len(sites) else Location(())
    if not location.lines:
        return "an unknown line"
    line = location.lines[0]
    source = linecache.getline(line.path, line.number).strip()
    return f"{location} `{source}`" if source else str(location)


def _triple(values: Any) -> tuple[int, int, int]:
    x, y, z = map(int, values)
    return x, y, z


def _others(pool: "Pool", thread: Any) -> str:
    """Where another thread of the block is, which this one waits for in vain."""
    mine = pool.threads[pool.threads["block"] == thread["block"]]
    for other in mine:
        if other["state"] == records.DONE:
            continue
        if other["site"] != thread["site"] or other["state"] == records.BARRIER != thread["state"]:
            return f"thread {_triple(other['tid'])} at {_line(pool, int(other['site']))}"
    return "others have taken another way"


def _target(pool: "Pool", scene: Scene, address: int, block: Any) -> str:
    """The address in terms of the nearest array."""
    if not address:
        return "a local array"
    candidates = [
        (a.begin, a.end, f"{scene.names.get(a.begin, 'array')} {a}") for a in scene.allocations
    ]
    base = int(block["shared"])
    for i, array in enumerate(pool.program.host.shared):
        n_bytes = array.n_bytes or pool.dynamic_bytes
        begin = base + array.offset
        candidates.append((begin, begin + n_bytes, f"shared array {i} of {n_bytes} bytes"))
    if not candidates:
        return f"address {address:#x}"
    begin, end, name = min(candidates, key=lambda c: max(c[0] - address, address - c[1] + 1, 0))
    return f"byte {address - begin} of {name} ({end - begin} bytes)"
