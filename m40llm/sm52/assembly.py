"""A kernel compiled and assembled for a card that need not be there: no GPU, no driver."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, files, version
from pathlib import Path
from typing import Any, Final

from m40llm.device.gpu.compiler import Capability, ptx_of
from m40llm.device.packages import CUDA_PACKAGE
from m40llm.errors import DeviceError
from m40llm.kernels.contract import Kernel

SM_52: Final = (5, 2)
_WHEEL: Final = "nvidia-cuda-nvcc-cu12"


@dataclass(frozen=True)
class Assembled:
    """What ptxas makes and says of a kernel.

    shared_bytes  static ones, which the kernel itself declares
    """

    ptx: str
    cubin: bytes
    registers: int
    spill_bytes: int
    shared_bytes: int


def assemble(
    kernel: Kernel, arg_types: tuple[Any, ...], capability: Capability = SM_52
) -> Assembled:
    """PTX for sm_52, as all cards get it, and the code for `capability` made of it.

    DeviceError where the assembler is missing, or refuses the code.
    """
    assembler = ptxas()
    _, ptx = ptx_of(kernel, arg_types, SM_52)
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx)
        arch = "-arch=sm_{}{}".format(*capability)
        command = [assembler, arch, "-v", str(source), "-o", str(cubin)]
        if kernel.registers is not None:
            command.append(f"-maxrregcount={kernel.registers}")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise DeviceError(f"kernel {kernel.name}: ptxas: {done.stderr.strip()}")
        code = cubin.read_bytes()
    return Assembled(
        ptx,
        code,
        registers=_number(r"Used (\d+) registers", done.stderr),
        spill_bytes=_number(r"(\d+) bytes spill stores", done.stderr),
        shared_bytes=_number(r"(\d+) bytes smem", done.stderr),
    )


@cache
def ptxas() -> str:
    """The assembler in the wheel of CUDA 12's compiler; DeviceError without one."""
    try:
        found = [file for file in files(_WHEEL) or [] if file.name.startswith("ptxas")]
    except PackageNotFoundError:
        found = []
    if not found:
        raise DeviceError(f"{_WHEEL}, whose ptxas assembles for sm_52, is missing: {CUDA_PACKAGE}")
    return str(found[0].locate())


def assembler_version() -> str:
    """Part of the key of what it made; "" without one."""
    try:
        return version(_WHEEL)
    except PackageNotFoundError:
        return ""


def _number(pattern: str, text: str) -> int:
    return sum(int(number) for number in re.findall(pattern, text))
