"""Numba's compiler, quickened: the same IR, and Numba as it was afterwards."""

import gc
import math
import re
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest

pytest.importorskip("numba.cuda", reason="no kernels: pip install numba-cuda")

from numba import cuda, float32, int32, types

from m40llm.device.emulator.frontend import numba_ir
from m40llm.device.emulator.host_ir import host_ir
from m40llm.device.gpu import compiler, quick_numba

ARGUMENTS = (types.Array(float32, 1, "C"), types.int32)


def made() -> Callable[..., None]:
    """Two ways lead from the kernel to `scaled`; literals, tuples and shared memory are in it."""

    @cuda.jit(device=True)
    def scaled(x: Any, by: Any) -> Any:
        return math.exp(x) * by, x

    @cuda.jit(device=True)
    def both(x: Any) -> Any:
        first, second = scaled(x, float32(2)), scaled(x, int32(3))
        return first[0] + second[0]

    def kernel(x: Any, n: Any) -> None:
        kept = cuda.shared.array(32, float32)
        i = cuda.threadIdx.x
        if i < n:
            kept[i] = both(x[i]) + scaled(x[i], float32(2))[1]
        cuda.syncthreads()
        for j in range(3):
            x[i] += kept[(i + j) % 32]

    return kernel


def test_the_ir_is_numbas(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = numba_ir(made(), ARGUMENTS, {})
    monkeypatch.setattr(compiler, "quick_numba", nullcontext)
    slow = numba_ir(made(), ARGUMENTS, {})
    assert len(quick) == len(set(quick)) == 4
    assert len(slow) > len(set(slow)) == 4  # a module for each way to it
    assert sorted(rewritten(quick)) == sorted(rewritten(list(dict.fromkeys(slow))))


def rewritten(texts: list[str]) -> list[str]:
    """For the host, which names functions as they come: the modules' order is that of a set."""
    return [re.sub(r"emu\.function\.\d+", "function", text) for text in host_ir(texts).modules]


def test_numba_is_as_it_was_afterwards() -> None:
    def found() -> list[Any]:
        return [vars(owner)[name] for owner, name, _ in quick_numba._QUICK]

    before = found()
    with quick_numba.quick_numba(), quick_numba.quick_numba():
        assert found() == [quick for *_, quick in quick_numba._QUICK]
        assert not gc.isenabled()
    assert found() == before
    assert gc.isenabled()
