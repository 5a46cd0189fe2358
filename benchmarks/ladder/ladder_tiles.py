"""What steps 4 to 6 share: 128 x 128 outputs a block of 256 threads, 8 x 8 sums a thread.

A tile is [column][token] or [column][row] in shared memory, so that four numbers that a thread
wants lie side by side. 4 floats after each column keep the transposed stores from one bank.
"""

from typing import Any

from numba import cuda, float32, int64, uint32

from m40llm.kernels.bits import half2_to_float2
from m40llm.kernels.contract import Kernel, Launcher
from m40llm.kernels.intrinsics import load_float4_readonly, load_float4_shared, load_uint4_readonly

TILE, BK, N_THREADS = 128, 16, 256
PITCH = TILE + 4
TILE_FLOATS = BK * PITCH


@cuda.jit(device=True, forceinline=True)
def load(w: Any, x: Any, first_token: Any, first_row: Any, col: Any, quads: Any, raw: Any) -> None:
    """Two quads of x and eight weights of the thread's: from memory, 16 bytes at a time."""
    t, n_cols = cuda.threadIdx.x, x.shape[1]
    for n in range(2):
        at = (first_token + (t >> 2) + 64 * n) * n_cols + col + 4 * (t & 3)
        a, b, c, d = load_float4_readonly(x, at)
        quads[n, 0], quads[n, 1], quads[n, 2], quads[n, 3] = a, b, c, d
    at = ((first_row + (t >> 1)) * n_cols + col + 8 * (t & 1)) >> 1
    raw[0], raw[1], raw[2], raw[3] = load_uint4_readonly(w, at)


@cuda.jit(device=True, forceinline=True)
def store(quads: Any, raw: Any, pool: Any, x_at: Any, w_at: Any) -> None:
    """The same, into the tiles that begin at x_at and w_at of `pool`."""
    t = cuda.threadIdx.x
    for n in range(2):
        for k in range(4):
            pool[uint32(x_at + (4 * (t & 3) + k) * PITCH + (t >> 2) + 64 * n)] = quads[n, k]
    for pair in range(4):
        low, high = half2_to_float2(raw[pair])
        at = w_at + (8 * (t & 1) + 2 * pair) * PITCH + (t >> 1)
        pool[uint32(at)], pool[uint32(at + PITCH)] = low, high


@cuda.jit(device=True, forceinline=True)
def load_column(pool: Any, x_at: Any, w_at: Any, x: Any, w: Any) -> None:
    """8 numbers of x and 8 of W: two quads of each, half a tile apart."""
    x[0], x[1], x[2], x[3] = load_float4_shared(pool, x_at)
    x[4], x[5], x[6], x[7] = load_float4_shared(pool, x_at + TILE // 2)
    w[0], w[1], w[2], w[3] = load_float4_shared(pool, w_at)
    w[4], w[5], w[6], w[7] = load_float4_shared(pool, w_at + TILE // 2)


def multiply_of(add_products: Any) -> Any:
    """multiply(pool, x_at, w_at, acc): 16 columns, each by add_products(x, w, acc)."""

    @cuda.jit(device=True, forceinline=True)
    def multiply(pool: Any, x_at: Any, w_at: Any, acc: Any) -> None:
        x, w = cuda.local.array(8, float32), cuda.local.array(8, float32)
        for k in range(BK):
            load_column(pool, int64(x_at + k * PITCH), int64(w_at + k * PITCH), x, w)
            add_products(x, w, acc)

    return multiply


@cuda.jit(device=True, forceinline=True)
def add_products(x: Any, w: Any, acc: Any) -> None:
    """Of one column."""
    for i in range(8):
        for j in range(8):
            acc[i, j] += x[i] * w[j]


@cuda.jit(device=True, forceinline=True)
def place() -> Any:
    """(token, row): the first of the thread's outputs, within the tile."""
    return (cuda.threadIdx.x >> 4) * 4, (cuda.threadIdx.x & 15) * 4


@cuda.jit(device=True, forceinline=True)
def write(acc: Any, token: Any, row: Any, out: Any) -> None:
    """The sums, of which (token, row) is the first."""
    for i in range(8):
        for j in range(8):
            out[token + (i >> 2) * 64 + (i & 3), row + (j >> 2) * 64 + (j & 3)] = acc[i, j]


def launch_of(kernel: Kernel) -> Any:
    """launch(w, x, out, stream)"""

    def launch(w: Any, x: Any, out: Any, stream: Launcher) -> None:
        grid = out.shape[1] // TILE, out.shape[0] // TILE
        stream.launch(kernel, grid, N_THREADS, w, x, out)

    return launch


@cuda.jit(device=True, forceinline=True)
def clear(acc: Any) -> None:
    for i in range(8):
        for j in range(8):
            acc[i, j] = float32(0)
