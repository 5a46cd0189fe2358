"""From host IR to machine code: link, optimise, split into a coroutine, assemble, cache on disk."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm

from m40llm.device.emulator.compiled import SOURCE_STAMP
from m40llm.device.emulator.coroutine import ENTRY, coroutine
from m40llm.device.emulator.host_ir import TRIPLE, HostIR
from m40llm.device.emulator.interrupts import interrupt_later
from m40llm.device.emulator.libdevice import c_declarations, libdevice
from m40llm.device.emulator.prelude import prelude
from m40llm.device.emulator.source_lines import Line, Location
from m40llm.device.emulator.subnormals import without_subnormals
from m40llm.device.gpu.disk_cache import entry_path, key_of, read_entry, write_entry

_lock = threading.Lock()


@dataclass(frozen=True)
class Code:
    """A kernel's machine code and what the scheduler and the error texts need to know of it."""

    address: int  # of the function that starts a thread
    sites: tuple[Location, ...]
    polls: bool
    atomics: bool
    engine: Any  # keeps the code in memory


def build(
    host: HostIR, *, checks: bool, steps: bool, on_compile: Callable[[], None] = lambda: None
) -> Code:
    """Machine code of the kernel, from the cache on disk if it is there and sound."""
    path = _path(host, checks, steps)
    with _lock:
        stored = read_entry(path)
        if stored is None:
            on_compile()
            stored = _compile(host, checks, steps)
            write_entry(path, *stored)
        header, machine_code = stored
        engine = _load(machine_code)
    sites = tuple(
        Location(tuple(Line(path, number) for path, number in lines)) for lines in header["sites"]
    )
    address = engine.get_function_address(ENTRY)
    return Code(address, sites, header["polls"], header["atomics"], engine)


# ------------------------------------------------------------- compiling
def _compile(host: HostIR, checks: bool, steps: bool) -> tuple[dict[str, Any], bytes]:
    machine = _target_machine()
    module = _linked(host, machine)
    _optimise(module, machine, speed=2, vectorise=False)
    text = without_subnormals(str(module))
    if not (checks or steps):  # no calls stand between the accesses: they can become vectors
        module = llvm.parse_assembly(text)
        _optimise(module, machine, speed=2, vectorise=True)
        text = str(module)
    result = coroutine(text, host, checks=checks, steps=steps)
    module = llvm.parse_assembly(result.text)
    module.verify()
    _split(module, machine)
    header = {
        "sites": [location.lines for location in result.sites],
        "polls": result.polls,
        "atomics": result.atomics,
    }
    return header, machine.emit_object(module)


def _linked(host: HostIR, machine: llvm.TargetMachine) -> llvm.ModuleRef:
    """One module: the kernel, its device functions, and the GPU's own functions."""
    library = libdevice(host.modules)
    library = f'target triple = "{TRIPLE}"\n' + prelude() + c_declarations(library) + library
    module = llvm.parse_assembly(host.modules[0])
    module.data_layout = str(machine.target_data)
    for text in (*host.modules[1:], library):
        part = llvm.parse_assembly(text)
        part.data_layout = module.data_layout
        module.link_in(part)
    module.verify()
    return module


def _optimise(
    module: llvm.ModuleRef, machine: llvm.TargetMachine, *, speed: int, vectorise: bool
) -> None:
    options = llvm.create_pipeline_tuning_options(speed_level=speed)
    options.slp_vectorization = vectorise
    options.loop_vectorization = False  # LLVM 22's fails its own assertion on some of our kernels
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(module, passes)


def _split(module: llvm.ModuleRef, machine: llvm.TargetMachine) -> None:
    """Functions of the coroutine, and the copies tidied up: what they do was optimised before."""
    _optimise(module, machine, speed=0, vectorise=False)
    passes = llvm.create_new_module_pass_manager()
    passes.add_simplify_cfg_pass()
    passes.add_instruction_combine_pass()
    passes.add_simplify_cfg_pass()
    options = llvm.create_pipeline_tuning_options()
    passes.run(module, llvm.create_pass_builder(machine, options))


@cache
def _initialise() -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


def _target_machine() -> llvm.TargetMachine:
    _initialise()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
    )


def _load(machine_code: bytes) -> Any:
    machine = _target_machine()
    with interrupt_later():
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
        engine.add_object_file(llvm.ObjectFileRef.from_data(machine_code))
        engine.finalize_object()
    return engine


# ------------------------------------------------------------- the cache on disk
@cache
def _toolchain() -> str:
    """All that decides what IR becomes, other than the IR."""
    llvm_version = ".".join(map(str, llvm.llvm_version_info))
    cpu = llvm.get_host_cpu_name() + llvm.get_host_cpu_features().flatten()
    return f"{SOURCE_STAMP} {llvmlite.__version__} {llvm_version} {version('numba-cuda')} {cpu}"


def _path(host: HostIR, checks: bool, steps: bool) -> Path:
    key = key_of(_toolchain(), *host.modules, str(host.shared), f"{checks} {steps}")
    return entry_path("emulator", key)
