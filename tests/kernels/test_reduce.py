"""scatter_sums: many sums over lanes at a time, each lane left with its share."""

from typing import Any

import numpy as np
import pytest
from numba import cuda, float32

from m40llm.kernels.contract import Kernel
from m40llm.kernels.reduce import WARP_SIZE, scatter_sums


def kernel_of(n: int, low: int, high: int, n_left: int) -> Kernel:
    scatter = scatter_sums(n, low, high)

    def scatter_alone(values: Any, out: Any) -> None:
        own = cuda.local.array(n, float32)
        for i in range(n):
            own[i] = values[cuda.threadIdx.x, i]
        scatter(own)
        for i in range(n_left):
            out[cuda.threadIdx.x, i] = own[i]

    return Kernel(scatter_alone, registers=64)


@pytest.mark.parametrize(
    ("n", "low", "high"),
    [
        *((4, 1, 32), (16, 2, 32), (8, 2, 32), (32, 1, 32)),  # of a warp
        *((4, 1, 8), (4, 1, 16), (2, 1, 2)),  # of the lanes of a key
        *((8, 1, 4), (4, 1, 1)),  # more sums than lanes
    ],
)
def test_scatter_sums(launcher: Any, n: int, low: int, high: int) -> None:
    rng = np.random.default_rng(n + high)
    values = rng.integers(-99, 99, (WARP_SIZE, n)).astype(np.float32)  # sums are exact
    n_fields, n_left = high // low, max(n * low // high, 1)
    out = launcher.alloc((WARP_SIZE, n_left), np.dtype(np.float32))
    kernel = kernel_of(n, low, high, n_left)
    launcher.launch(kernel, 1, WARP_SIZE, launcher.upload(values), out)
    for lane, found in enumerate(launcher.read(out)):
        field = lane // low % n_fields
        others = [lane - field * low + f * low for f in range(n_fields)]
        first = field * n // n_fields
        expected = values[others].sum(0)[first : first + n_left]
        np.testing.assert_array_equal(found, expected)
