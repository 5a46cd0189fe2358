"""Compiled kernels, kept for as long as the function lives: one a signature and set of options."""

import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from m40llm.device.emulator.build import Code, build
from m40llm.device.emulator.compiled import SOURCE_STAMP
from m40llm.device.emulator.frontend import argument_key, argument_type, numba_ir, python_function
from m40llm.device.emulator.host_ir import HostIR, SharedArray, host_ir
from m40llm.device.emulator.records import BLOCK, THREAD
from m40llm.device.emulator.scheduler import measure
from m40llm.device.gpu.disk_cache import entry_path, key_of, read_entry, write_entry
from m40llm.device.gpu.fingerprint import fingerprint
from m40llm.kernels.contract import Kernel


@dataclass(frozen=True)
class Program:
    """A kernel ready to run."""

    name: str
    parameters: tuple[str, ...]
    host: HostIR
    code: Code
    frame_bytes: int  # of a thread's coroutine
    spare_pools: dict[Any, list[Any]] = field(default_factory=dict, compare=False)


@dataclass
class _Compiled:
    """What has been made of one function: its IR by signature, then code by variant as well."""

    host: dict[Any, HostIR] = field(default_factory=dict)
    programs: dict[Any, Program] = field(default_factory=dict)


_programs: WeakKeyDictionary[Callable[..., Any], _Compiled] = WeakKeyDictionary()
_lock = threading.RLock()


def program(
    kernel: Any,
    args: tuple[Any, ...],
    *,
    checks: bool,
    steps: bool,
    on_compile: Callable[[str], None] = lambda name: None,
) -> Program:
    """The kernel compiled for these arguments, now or before.

    `on_compile` is told its name before Numba, and again before LLVM, has to compile it.
    """
    py_func, options = python_function(kernel)
    name = py_func.__name__
    begin = partial(on_compile, name)
    signature = (*map(argument_key, args), str(options.get("fastmath", False)))
    with _lock:
        known = _programs.setdefault(py_func, _Compiled())
        if signature not in known.host:
            known.host[signature] = _host_ir(py_func, args, options, begin)
        key = (signature, checks, steps)
        if key not in known.programs:
            host = known.host[signature]
            code = build(host, checks=checks, steps=steps, on_compile=begin)
            parameters = tuple(inspect.signature(py_func).parameters)
            known.programs[key] = Program(name, parameters, host, code, _frame_bytes(code))
        return known.programs[key]


def _host_ir(
    py_func: Callable[..., Any], args: tuple[Any, ...], options: Any, on_compile: Callable[[], None]
) -> HostIR:
    """The kernel's IR: from the disk if this very function was seen before, else from Numba."""
    arg_types = tuple(map(argument_type, args))
    kernel = Kernel(py_func, fastmath=bool(options.get("fastmath", False)))
    path = _ir_path(kernel, str(arg_types))
    if path is not None and (stored := read_entry(path)):
        header, modules = stored
        shared = tuple(SharedArray(*sizes) for sizes in header["shared"])
        return HostIR(tuple(modules.decode().split("\0")), shared)
    on_compile()
    host = host_ir(numba_ir(py_func, arg_types, options))
    if path is not None:
        shared_sizes = [(array.n_bytes, array.offset) for array in host.shared]
        write_entry(path, {"shared": shared_sizes}, "\0".join(host.modules).encode())
    return host


def _ir_path(kernel: Kernel, arg_types: str) -> Path | None:
    """Where its IR is kept; None for a function that cannot be told from others."""
    identity = fingerprint(kernel)
    if identity is None:
        return None
    versions = [version(name) for name in ("numba", "numba-cuda", "llvmlite")]
    return entry_path("emulator-ir", key_of(identity, arg_types, SOURCE_STAMP, *versions))


def _frame_bytes(code: Code) -> int:
    """Ask the coroutine how much memory it needs: it tells when it is given none."""
    thread, block = np.zeros(1, THREAD), np.zeros(1, BLOCK)
    thread["block"] = block.ctypes.data
    measure(np.uint64(code.address), np.uint64(thread.ctypes.data))
    return int(thread["frame_bytes"][0])
