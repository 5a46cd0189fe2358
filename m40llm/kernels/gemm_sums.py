"""The end of a matrix product: sums of a tile, from registers to out.

    add_groups(pool, group, t, acc)        of groups of threads that had other columns
    add_splits(...) -> is_last             of blocks that had other columns
    store_sums(...)                        + bias, + what was there, to out

Each is a few instructions for many sums, 16 bytes at a time: what runs once is fetched from memory
first, and a small product would wait longer for its end than it takes.

Four sums that are stored together lie in four registers in a row, and so do four weights that were
loaded together. Stored in their order, a sum and its weight would be in the same bank of registers
all through the loop; so quads of sums begin with the second (H100: two banks; sm_52: four).
"""

from functools import cache
from typing import Any

from numba import cuda, float32, int32, int64, uint32

from m40llm.kernels.gemm_tiles import N_SUMS, PADDING, Tile
from m40llm.kernels.intrinsics import (
    load_float4,
    load_float4_shared,
    store_float4,
    store_float4_shared,
)
from m40llm.kernels.last_block import comes_last


@cuda.jit(device=True, forceinline=True)
def _quad_of(acc: Any, i: Any, j: Any) -> Any:
    """Quad j of token i, as it is stored."""
    return acc[i, 4 * j + 1], acc[i, 4 * j + 2], acc[i, 4 * j + 3], acc[i, 4 * j]


@cuda.jit(device=True, forceinline=True)
def _add_quad(acc: Any, i: Any, j: Any, a: Any, b: Any, c: Any, d: Any) -> None:
    acc[i, 4 * j + 1] += a
    acc[i, 4 * j + 2] += b
    acc[i, 4 * j + 3] += c
    acc[i, 4 * j] += d


@cache
def add_groups_of(tile: Tile) -> Any:
    """add_groups(pool, group, t, acc): all groups' sums, into the first one's, pair by pair."""
    n_groups, n_threads = tile.n_groups, tile.group_threads

    @cuda.jit(device=True, forceinline=True)
    def add_groups(pool: Any, group: Any, t: Any, acc: Any) -> None:
        half = int32(n_groups // 2)
        while half > 0:
            at = int64(uint32(group % half) * uint32(N_SUMS * n_threads) + uint32(4) * t)
            cuda.syncthreads()  # all have read what is there
            if group >= half and group < int32(2 * half):
                for i in range(8):
                    for j in range(2):
                        here = at + (2 * i + j) * 4 * n_threads
                        a, b, c, d = _quad_of(acc, i, j)
                        store_float4_shared(pool, here, a, b, c, d)
            cuda.syncthreads()
            if group < half:
                for i in range(8):
                    for j in range(2):
                        a, b, c, d = load_float4_shared(pool, at + (2 * i + j) * 4 * n_threads)
                        _add_quad(acc, i, j, a, b, c, d)
            half = int32(half // 2)

    return add_groups


@cache
def add_splits_of(tile: Tile) -> Any:
    """add_splits(sums, arrived, ticket, part, is_first_group, t, acc) -> whether this block is the
    last of those that share the tile: then acc has the sums of all, in the order of their columns.
    """
    n_threads = tile.group_threads
    n_sums = N_SUMS * n_threads

    @cuda.jit(device=True, forceinline=True)
    def add_splits(
        sums: Any, arrived: Any, ticket: Any, part: Any, is_first_group: Any, t: Any, acc: Any
    ) -> Any:
        which, n_splits = uint32(part.shared), uint32(part.n_splits)
        first = int64(which * n_splits * uint32(n_sums) + uint32(4) * t)
        if is_first_group:
            at = first + int64(uint32(part.split) * uint32(n_sums))
            for i in range(8):
                for j in range(2):
                    here = at + (2 * i + j) * 4 * n_threads
                    a, b, c, d = _quad_of(acc, i, j)
                    store_float4(sums, here, a, b, c, d)
        if not comes_last(arrived, which, n_splits, ticket):
            return False
        if is_first_group:
            for i in range(8):
                for j in range(8):
                    acc[i, j] = float32(0)
            split = uint32(0)
            while split < n_splits:
                at = first + int64(split * uint32(n_sums))
                for i in range(8):
                    for j in range(2):
                        a, b, c, d = load_float4(sums, at + (2 * i + j) * 4 * n_threads)
                        _add_quad(acc, i, j, a, b, c, d)
                split = uint32(split + uint32(1))
        return True

    return add_splits


@cache
def store_sums_of(tile: Tile, has_bias: bool, accumulate: bool) -> Any:
    """store_sums(acc, pool, is_first_group, token_at, row_at, first_token, first_row, bias, out)

    By all threads of the block; half of the tile's tokens at a time, through shared memory, so that
    whole lines are written.
    """
    half_tokens, half_rows = tile.n_tokens // 2, tile.n_rows // 2
    row_quads, pitch, n_threads = tile.n_rows // 4, tile.n_rows + PADDING, tile.n_threads

    @cuda.jit(device=True, forceinline=True)
    def put(row: Any, token: Any, n_rows: Any, value: Any, bias: Any, out: Any) -> None:
        if row < n_rows:
            if has_bias:
                value += bias[row]
            if accumulate:
                value += out[token, row]
            out[token, row] = value

    @cuda.jit(device=True, forceinline=True)
    def put_half(
        half: Any, pool: Any, first_token: Any, first_row: Any, bias: Any, out: Any
    ) -> None:
        n_tokens, n_rows = int64(out.shape[0]), int64(out.shape[1])
        i = uint32(cuda.threadIdx.x)
        while i < half_tokens * row_quads:
            of_half, quad = uint32(i // uint32(row_quads)), uint32(i % uint32(row_quads))
            token = int64(first_token + half * half_tokens) + int64(of_half)
            row = int64(first_row) + int64(quad) * 4
            if token < n_tokens:
                at = int64(uint32(of_half * uint32(pitch) + quad * uint32(4)))
                b, c, d, a = load_float4_shared(pool, at)  # as they were stored
                if not has_bias and not accumulate and row + 3 < n_rows and n_rows & 3 == 0:
                    store_float4(out, token * n_rows + row, a, b, c, d)
                else:
                    put(row, token, n_rows, a, bias, out)
                    put(row + 1, token, n_rows, b, bias, out)
                    put(row + 2, token, n_rows, c, bias, out)
                    put(row + 3, token, n_rows, d, bias, out)
            i = uint32(i + uint32(n_threads))

    @cuda.jit(device=True, forceinline=True)
    def store_sums(
        acc: Any, pool: Any, is_first_group: Any, token_at: Any, row_at: Any, first_token: Any,
        first_row: Any, bias: Any, out: Any,
    ) -> None:  # fmt: skip
        at = int64(token_at) * pitch + row_at
        for half in range(2):
            cuda.syncthreads()  # all have read what is there
            if is_first_group:
                for i in range(4):
                    k = 4 * half + i
                    a, b, c, d = _quad_of(acc, k, 0)
                    store_float4_shared(pool, at + i * pitch, a, b, c, d)
                    a, b, c, d = _quad_of(acc, k, 1)
                    store_float4_shared(pool, at + i * pitch + half_rows, a, b, c, d)
            cuda.syncthreads()
            put_half(half, pool, first_token, first_row, bias, out)

    return store_sums
