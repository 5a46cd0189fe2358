"""Kernels of a card, compiled once: in this process, and on disk for the next one."""

import ctypes
import threading
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from textwrap import shorten
from typing import Any, Final

import numpy as np
from cuda.bindings import driver
from cuda.pathfinder import DynamicLibNotFoundError

from m40llm.device.cuda.array import DeviceArray
from m40llm.device.cuda.assemble import assemble, assembler_name
from m40llm.device.cuda.driver import call
from m40llm.device.gpu.compiler import Capability, argument_type, ptx_of
from m40llm.device.gpu.compiling import Compiling
from m40llm.device.gpu.disk_cache import entry_path, key_of, read_entry, write_entry
from m40llm.device.gpu.fingerprint import fingerprint
from m40llm.device.packages import CUDA_PACKAGE
from m40llm.errors import DeviceError, KernelContractError
from m40llm.kernels.contract import Kernel

# Distributions whose version decides what a kernel becomes.
_TOOLCHAIN: Final = (
    *("numba", "numba-cuda", "llvmlite", "numpy"),
    *("nvidia-cuda-nvcc-cu12", "nvidia-nvvm"),
)


@dataclass
class Function:
    """A kernel in a card's memory, and the place where a launch writes its parameters."""

    handle: Any  # CUfunction
    slots: Any  # uint64[n]: one for a number, 5 + 2 * ndim for an array
    pointers: Any  # void*[n]: what the driver reads them through
    pointers_address: int


class Modules:
    """The kernels that a card has, by signature. `compiling` counts and tells of new ones."""

    def __init__(self, capability: Capability, target: Capability) -> None:
        self.target = target
        self.compiling = Compiling(f"sm_{target[0]}{target[1]}")
        self._assembler = assembler_name(target, capability)
        self._functions: dict[tuple[Any, ...], Function] = {}
        self._lock = threading.Lock()

    def function(self, kernel: Kernel, args: tuple[Any, ...], n_slots: int) -> Function:
        """The kernel compiled for arguments of these types, now or before."""
        key = (kernel, *[a.kind if isinstance(a, DeviceArray) else type(a) for a in args])
        function = self._functions.get(key)
        if function is None:
            with self._lock:
                function = self._functions[key] = _load(*self._code(kernel, args), n_slots)
        return function

    def _code(self, kernel: Kernel, args: tuple[Any, ...]) -> tuple[str, bytes]:
        """(name of the entry, cubin): from the disk, or compiled and kept there."""
        arg_types = tuple(map(argument_type, args))
        identity = fingerprint(kernel)
        path = None
        if identity is not None:
            target = self.compiling.target
            key = key_of(identity, str(arg_types), target, self._assembler, _toolchain())
            path = entry_path("cuda", key)
            if stored := read_entry(path):
                return stored[0]["entry"], stored[1]
        with self.compiling.watch() as notice:
            notice.begin(kernel.name)
            entry, ptx = _compiled(kernel, arg_types, self.target)
            cubin = assemble(ptx, kernel.registers, self._assembler)
        if path is not None:
            write_entry(path, {"entry": entry, "kernel": kernel.name}, cubin)
        return entry, cubin


def _compiled(kernel: Kernel, arg_types: tuple[Any, ...], target: Capability) -> tuple[str, str]:
    """(name of the entry, PTX); DeviceError where a library of the compiler is missing."""
    try:
        return ptx_of(kernel, arg_types, target)
    except (ImportError, DynamicLibNotFoundError) as error:  # NvvmSupportError is an ImportError
        reason = shorten(str(error), 80, placeholder=" ...")
        told = f"kernel {kernel.name}: the compiler is not whole ({reason}): {CUDA_PACKAGE}"
        raise DeviceError(told) from error


def _load(entry: str, cubin: bytes, n_slots: int) -> Function:
    module = call(driver.cuModuleLoadData, cubin)
    handle = call(driver.cuModuleGetFunction, module, entry.encode())
    slots = (ctypes.c_uint64 * max(n_slots, 1))()
    addresses = [ctypes.addressof(slots) + 8 * i for i in range(n_slots)]
    pointers = (ctypes.c_void_p * max(n_slots, 1))(*addresses)
    return Function(handle, slots, pointers, ctypes.addressof(pointers))


def flatten(args: tuple[Any, ...]) -> list[int]:
    """Arguments as 8-byte words, as Numba's calling convention flattens them."""
    words: list[int] = []
    for arg in args:
        if isinstance(arg, DeviceArray):
            words += arg.parameters
        elif isinstance(arg, np.ndarray):
            raise KernelContractError(f"argument: {arg.shape} lies in the host's memory")
        else:
            raw = np.asarray(arg).tobytes().ljust(8, b"\0")
            words.append(int.from_bytes(raw, "little"))
    return words


@cache
def _toolchain() -> str:
    """Versions of all that stands between a kernel and its PTX."""
    from numba.cuda.cudadrv.libs import get_cudalib

    nvvm = Path(str(get_cudalib("nvvm")))
    n_bytes = nvvm.stat().st_size if nvvm.is_file() else 0
    return " ".join([*(f"{name} {_version(name)}" for name in _TOOLCHAIN), f"{nvvm} {n_bytes}"])


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "none"
