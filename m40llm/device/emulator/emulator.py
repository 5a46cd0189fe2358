"""Runs CUDA kernels on the CPU, from the LLVM IR that Numba emits for sm_52. See docs/emulator.md.

emulator = Emulator(order="random", seed=1)
y = emulator.alloc(1024, np.float32)
emulator.launch(kernel, grid=4, block=256, args=(x, y, np.int32(1024)))
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from m40llm.device.emulator.counters import Counts
from m40llm.device.emulator.errors import EmulatorError
from m40llm.device.emulator.frontend import COMPUTE_CAPABILITY
from m40llm.device.emulator.launch import ORDERS, Geometry, Job, Settings, dims, pack, run
from m40llm.device.emulator.memory import Array, DeviceMemory
from m40llm.device.emulator.program import Program, program
from m40llm.device.emulator.report import Scene
from m40llm.device.gpu.compiling import Compiling


class Emulator:
    """A card made of CPU cores.

    order         how lanes, warps and blocks take turns; "random" draws it from `seed`
    checks        bounds, first writes, alignment and read-only arrays, at every access
    interleave    threads also stop before single loads and stores, where order is "random"
                  (None: if checks are on)
    count         fill `counts` with what the last launch loaded and stored
    n_threads     cores to use (None: all; one for kernels with atomics)
    time_limit_s  of a launch (None: it may run for ever)
    """

    def __init__(
        self,
        order: Literal["ascending", "descending", "random"] = "ascending",
        seed: int = 0,
        checks: bool = True,
        *,
        interleave: bool | None = None,
        n_threads: int | None = None,
        count: bool = False,
        time_limit_s: float | None = 600.0,
    ) -> None:
        if order not in ORDERS:
            raise EmulatorError(f"order: expected one of {sorted(ORDERS)}, got {order!r}")
        if interleave is None:
            interleave = checks
        interleave = interleave and order == "random"
        interleave = interleave and not count  # counting needs the lanes in step
        self.settings = Settings(order, seed, checks, interleave, n_threads, count, time_limit_s)
        self.counts: Counts | None = None
        self.memory = DeviceMemory()
        self.compiling = Compiling("sm_{}{}".format(*COMPUTE_CAPABILITY))
        self.n_launches = 0

    def alloc(self, shape: int | Sequence[int], dtype: DTypeLike, fill: Any = None) -> Array:
        """A device array; with no `fill`, reading what nobody wrote is an error."""
        return self.memory.alloc(shape, dtype, fill)

    def upload(self, values: ArrayLike, *, read_only: bool = False) -> Array:
        """A device array with these values."""
        return self.memory.upload(values, read_only=read_only)

    def write(self, array: Array, values: ArrayLike) -> None:
        """Copy values from the host into (a view of) a device array."""
        self.memory.write(array, values)

    def launch(
        self,
        kernel: Any,
        grid: int | Sequence[int],
        block: int | Sequence[int],
        args: Sequence[Any],
        *,
        shared_bytes: int = 0,
        concurrent_blocks: bool | None = None,
        wait_s: float = 0.0,
    ) -> None:
        """Run a kernel (a Python function or a `@cuda.jit` one) to its end.

        args               arrays (of this emulator, or any NumPy array) and numbers
        shared_bytes       of dynamic shared memory
        concurrent_blocks  all blocks live at once, for a grid barrier (None: if the kernel
                           has volatile loads)
        wait_s             how long blocks may wait for the host to write what they poll
        """
        settings, args = self.settings, tuple(args)
        steps = settings.interleave or settings.count
        with self.compiling.watch() as notice:
            how = {"checks": settings.checks, "steps": steps}
            compiled = program(kernel, args, **how, on_compile=notice.begin)
            geometry = Geometry(dims(grid), dims(block), shared_bytes)
            geometry.check(compiled)
            concurrent = compiled.code.polls if concurrent_blocks is None else concurrent_blocks
            scene = self._scene(compiled, args, concurrent)
            job = Job(compiled, geometry, pack(args), scene, settings, concurrent, wait_s)
            self.n_launches += 1
            if self.n_launches > 1:  # the first run has the scheduler compiled, too
                notice.end()
            self.counts = run(job)

    def _scene(self, compiled: Program, args: tuple[Any, ...], concurrent: bool) -> Scene:
        """What an error text would tell of a launch: its arrays and their names."""
        arrays = (
            [arg for arg in args if isinstance(arg, np.ndarray)] if self.settings.checks else []
        )
        table, allocations = self.memory.table(arrays)
        names = {
            arg.ctypes.data: name
            for name, arg in zip(compiled.parameters, args, strict=False)
            if isinstance(arg, np.ndarray)
        }
        return Scene(compiled.name, table, allocations, names, concurrent)
