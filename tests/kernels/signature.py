"""What the kernels are launched with, to be compiled for sm_52: see m40llm/sm52/assembly.py.

A file `signatures_<who>.py` in this folder holds `SIGNATURES`, rows of `Signature`; test_sm52.py
finds them all. Types are Numba's; F32_1 is float32[n] in C order, F32_2 float32[m, n], ...
"""

from dataclasses import dataclass

from numba import types
from numba.cuda.types import float16

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
