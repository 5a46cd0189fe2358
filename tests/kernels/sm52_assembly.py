"""A kernel compiled for sm_52 and assembled by the wheel's ptxas; no GPU, no driver.

A file `signatures_<who>.py` in this folder holds `SIGNATURES`, rows of `Signature`; test_sm52.py
finds them all. Types are Numba's; F32_1 is float32[n] in C order, F32_2 float32[m, n], ...
"""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from importlib.metadata import files
from pathlib import Path

from numba import types
from numba.cuda.types import float16

from m40llm.device.gpu.compiler import ptx_of
from m40llm.kernels.contract import Kernel

F32, I32, I64 = types.float32, types.int32, types.int64
I8_4 = types.Array(types.int8, 4, "C")
U8_2 = types.Array(types.uint8, 2, "C")
F16_1, F16_2, F16_4 = (types.Array(float16, n, "C") for n in (1, 2, 4))
F32_1, F32_2, F32_3 = (types.Array(types.float32, n, "C") for n in (1, 2, 3))
I32_1, I32_2 = (types.Array(types.int32, n, "C") for n in (1, 2))
I64_2 = types.Array(types.int64, 2, "C")
U64_1 = types.Array(types.uint64, 1, "C")


@dataclass(frozen=True)
class Signature:
    """One way in which a kernel is launched.

    shared_bytes  of dynamic shared memory, beside the static that ptxas knows of
    """

    kernel: Kernel
    arg_types: tuple[types.Type, ...]
    n_threads: int
    label: str = ""
    shared_bytes: int = 0

    def __str__(self) -> str:
        return f"{self.kernel.name}{'-' if self.label else ''}{self.label}"


@dataclass(frozen=True)
class Assembled:
    """What ptxas says of a kernel."""

    ptx: str
    registers: int
    spill_bytes: int
    shared_bytes: int

    def blocks_per_sm(self, n_threads: int) -> int:
        """On a GM200: 65536 registers (by 256 a warp), 96 KiB shared, 2048 threads, 32 blocks."""
        n_warps = -(-n_threads // 32)
        warp_registers = -(-self.registers * 32 // 256) * 256
        by_registers = 65536 // warp_registers // n_warps
        by_shared = 98304 // max(self.shared_bytes, 1)
        return min(by_registers, by_shared, 64 // n_warps, 32)


def assemble(signature: Signature) -> Assembled:
    """Compile the kernel for cc (5, 2) and assemble it."""
    kernel = signature.kernel
    _, ptx = ptx_of(kernel, signature.arg_types, (5, 2))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        command = [ptxas(), "-arch=sm_52", "-v", str(source), "-o", str(Path(folder, "cubin"))]
        if kernel.registers is not None:
            command.append(f"-maxrregcount={kernel.registers}")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Assembled(
        ptx,
        registers=_number(r"Used (\d+) registers", done.stderr),
        spill_bytes=_number(r"(\d+) bytes spill stores", done.stderr),
        shared_bytes=_number(r"(\d+) bytes smem", done.stderr) + signature.shared_bytes,
    )


def ptxas() -> str:
    """The assembler in the wheel nvidia-cuda-nvcc-cu12."""
    found = [f for f in files("nvidia-cuda-nvcc-cu12") or [] if f.name.startswith("ptxas")]
    return str(found[0].locate())


def _number(pattern: str, text: str) -> int:
    return sum(int(number) for number in re.findall(pattern, text))
