"""Kernels as a model uses them: a quantised gemv, a tiled gemm, a norm; integers compared with ==.

Cut down from the drafts of the project's first proofs.
"""

import math

import numpy as np
import pytest
from numba import cuda, float32, int32, int64, uint32

from m40llm.device.emulator import Emulator
from m40llm.kernels.bits import half2_to_float2, uint_as_float
from m40llm.kernels.intrinsics import load_float4, load_uint4_readonly, store_float4
from m40llm.kernels.reduce import warp_sum

N_WARPS = 2
MANTISSA = uint32(0x780000)
ONE = uint32(0x3F800000)


@cuda.jit(fastmath=True)
def gemv_q4_0(quants, scales, x, y):
    """y = W x; a lane takes one block of 32 weights: 16 bytes of nibbles and an FP16 scale.

    A nibble n becomes the float 1 + n/16 with a mask and an exponent: w = 16 (1 + n/16 - 1.5) d.
    """
    row = cuda.blockIdx.x * N_WARPS + (cuda.threadIdx.x >> 5)
    lane = cuda.laneid
    n_blocks = scales.shape[1]
    if row >= y.size:
        return
    total = float32(0)
    for block in range(lane, n_blocks, 32):
        words = load_uint4_readonly(quants, (int64(row) * n_blocks + block) * 4)
        part = float32(0)
        for i in range(4):
            for byte in range(4):
                shift = uint32(8 * byte)
                low = (words[i] >> shift) & uint32(15)
                high = (words[i] >> (shift + uint32(4))) & uint32(15)
                column = block * 32 + i * 4 + byte
                part += (uint_as_float(low << uint32(19) | ONE) - float32(1.5)) * x[column]
                part += (uint_as_float(high << uint32(19) | ONE) - float32(1.5)) * x[column + 16]
        total += part * float32(scales[row, block])
    total = warp_sum(total)
    if lane == 0:
        y[row] = total * float32(16)


@pytest.mark.parametrize(("n_rows", "n_columns"), [(5, 32), (33, 1024), (64, 1120)])
def test_gemv_q4_0(emulator: Emulator, n_rows: int, n_columns: int) -> None:
    rng = np.random.default_rng(0)
    nibbles = rng.integers(0, 256, (n_rows, n_columns // 32, 16), dtype=np.uint8)
    scales = rng.integers(1, 5, (n_rows, n_columns // 32)).astype(np.float16)
    x = rng.integers(-4, 5, n_columns).astype(np.float32)
    y = emulator.alloc(n_rows, np.float32)
    quants = emulator.upload(nibbles.view(np.uint32).reshape(-1), read_only=True)
    grid = -(-n_rows // N_WARPS)
    emulator.launch(gemv_q4_0, grid, 32 * N_WARPS, (quants, scales, x, y))
    weights = np.concatenate([nibbles & 15, nibbles >> 4], -1).astype(np.float32) - 8
    weights *= scales[..., None].astype(np.float32)
    np.testing.assert_array_equal(y, weights.reshape(n_rows, n_columns) @ x)


TILE, PITCH, DEPTH, PER_THREAD = 32, 36, 16, 4


@cuda.jit(fastmath=True)
def gemm(a, b, c):
    """C[m, n] = A[m, k] B[n, k]^T: 32 x 32 tiles, 4 x 4 a thread, B in FP16, double-buffered."""
    a_tile = cuda.shared.array((2, DEPTH, PITCH), float32, alignment=16)
    b_tile = cuda.shared.array((2, DEPTH, PITCH), float32, alignment=16)
    acc = cuda.local.array((PER_THREAD, PER_THREAD), float32)
    t = cuda.threadIdx.x
    tx, ty = t & 7, t >> 3
    row, column = cuda.blockIdx.y * TILE, cuda.blockIdx.x * TILE
    n_k = a.shape[1]
    load_row, load_k = t >> 1, (t & 1) * 8
    for i in range(PER_THREAD):
        for j in range(PER_THREAD):
            acc[i, j] = float32(0)
    for step in range(n_k // DEPTH):
        buffer = step & 1
        k = int64(step * DEPTH + load_k)
        for half in range(2):
            at = int64(row + load_row) * n_k + k + half * 4
            values = load_float4(a, at)
            for i in range(4):
                a_tile[buffer, load_k + half * 4 + i, load_row] = values[i]
        words = load_uint4_readonly(b, (int64(column + load_row) * n_k + k) >> 1)
        for i in range(4):
            low, high = half2_to_float2(words[i])
            b_tile[buffer, load_k + 2 * i, load_row] = low
            b_tile[buffer, load_k + 2 * i + 1, load_row] = high
        cuda.syncthreads()
        for d in range(DEPTH):
            for i in range(PER_THREAD):
                for j in range(PER_THREAD):
                    acc[i, j] += (
                        a_tile[buffer, d, ty * PER_THREAD + i]
                        * b_tile[buffer, d, tx * PER_THREAD + j]
                    )
    for i in range(PER_THREAD):
        at = int64(row + ty * PER_THREAD + i) * c.shape[1] + column + tx * PER_THREAD
        store_float4(c, at, acc[i, 0], acc[i, 1], acc[i, 2], acc[i, 3])


def test_gemm(emulator: Emulator) -> None:
    rng = np.random.default_rng(1)
    m, n, k = 64, 96, 80
    a = emulator.upload(rng.integers(-4, 5, (m, k)).astype(np.float32))
    b = rng.integers(-4, 5, (n, k)).astype(np.float16)
    c = emulator.alloc((m, n), np.float32)
    packed = emulator.upload(b.view(np.uint32).reshape(-1), read_only=True)
    emulator.launch(gemm, (n // TILE, m // TILE), 64, (a, packed, c))
    np.testing.assert_array_equal(c, a @ b.astype(np.float32).T)


def rms_norm(x, weight, eps, y):
    partial = cuda.shared.array(32, float32)
    token, t = cuda.blockIdx.x, cuda.threadIdx.x
    sum_sq = float32(0)
    for c in range(t, x.shape[1], cuda.blockDim.x):
        sum_sq += x[token, c] * x[token, c]
    sum_sq = warp_sum(sum_sq)
    if t & 31 == 0:
        partial[t >> 5] = sum_sq
    cuda.syncthreads()
    sum_sq = float32(0)
    for warp in range(int32(cuda.blockDim.x >> 5)):
        sum_sq += partial[warp]
    scale = float32(1) / math.sqrt(sum_sq / float32(x.shape[1]) + eps)
    for c in range(t, x.shape[1], cuda.blockDim.x):
        y[token, c] = x[token, c] * scale * weight[c]


def test_rms_norm_in_place(emulator: Emulator) -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((3, 200)).astype(np.float32)
    weight = rng.standard_normal(200).astype(np.float32)
    exact = x.astype(np.float64)
    exact *= weight / np.sqrt((exact**2).mean(1, keepdims=True) + 1e-5)
    emulator.launch(rms_norm, 3, 96, (x, weight, np.float32(1e-5), x))
    bound = (200 + 8) * 2.0**-24 * np.abs(exact)
    assert (np.abs(x - exact) <= bound).all()
