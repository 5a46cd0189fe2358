"""No FP64 in a kernel: sm_52 does it at 1/32 of the speed, and a bare literal is enough.

Numba's IR is full of FP64 constants that are rounded to FP32 at once, which cost nothing. Only
where it computes with an FP64 that is no constant is the kernel compiled to PTX, which decides:
once a signature, and as a rule not at all.
"""

import re
from typing import Any
from weakref import WeakKeyDictionary

from m40llm.errors import KernelContractError
from m40llm.kernels.contract import Kernel

_RESULT = re.compile(r'^\s*(%"[^"]+"|%[\w.]+) = (\w+) (.*)$')
_OPERAND = re.compile(r'%"[^"]+"|%[\w.]+')
_ARITHMETIC = {
    "fadd",
    "fsub",
    "fmul",
    "fdiv",
    "frem",
    "fneg",
    "fptrunc",
    "fcmp",
    "fptosi",
    "fptoui",
}
_known: WeakKeyDictionary[Any, dict[Any, str]] = WeakKeyDictionary()


class Fp64Error(KernelContractError):
    """The kernel's code for sm_52 computes in FP64."""


def assert_no_fp64(launcher: Any, kernel: Kernel, args: tuple[Any, ...]) -> None:
    """Fp64Error if the kernel, as compiled for these arguments, does; the emulator's only."""
    if not hasattr(launcher, "emulator"):
        return
    signature = tuple((arg.dtype, arg.ndim) if hasattr(arg, "dtype") else type(arg) for arg in args)
    known = _known.setdefault(kernel.function, {})
    if signature not in known:
        known[signature] = _found(launcher, kernel, args)
    if known[signature]:
        raise Fp64Error(f"{kernel.name} computes in FP64, 1/32 of the speed: {known[signature]}")


def _found(launcher: Any, kernel: Kernel, args: tuple[Any, ...]) -> str:
    """The first such instruction of the PTX; empty where there is none."""
    from m40llm.device.emulator.program import program

    settings = launcher.emulator.settings
    jitted = _Jitted(kernel)
    steps = settings.interleave or settings.count
    texts = program(jitted, args, checks=settings.checks, steps=steps).host.modules
    if not any(map(suspicious, texts)):
        return ""
    lines = re.findall(r"^\s*(\S.*\.f64\b.*)$", _ptx(kernel, args), re.M)
    return lines[0].strip() if lines else ""


def suspicious(text: str) -> bool:
    """Whether LLVM IR computes with a `double` that is not made of constants alone."""
    constants: set[str] = set()
    for line in text.splitlines():
        if "double" not in line or line.startswith(("declare", "!", ";", "define")):
            continue
        match = _RESULT.match(line)
        if match is None or match[2] not in _ARITHMETIC:
            if re.search(r"\b(call|sitofp|uitofp|fpext|phi|load|select)\b.*\bdouble\b", line):
                return True
            continue
        operands = _OPERAND.findall(match[3].split(", !dbg")[0])
        if not constants.issuperset(operands):
            return True
        constants.add(match[1])
    return False


def _ptx(kernel: Kernel, args: tuple[Any, ...]) -> str:
    from numba import types
    from numba.cuda import compiler

    from m40llm.device.emulator.frontend import COMPUTE_CAPABILITY, argument_type, no_driver_needed

    with no_driver_needed():
        ptx, _ = compiler.compile_ptx(
            kernel.function,
            types.void(*map(argument_type, args)),
            fastmath=kernel.fastmath,
            cc=COMPUTE_CAPABILITY,
        )
    return str(ptx)


class _Jitted:
    """A kernel in the form of a `@cuda.jit` one."""

    def __init__(self, kernel: Kernel) -> None:
        self.py_func = kernel.function
        self.targetoptions = {"fastmath": kernel.fastmath}
