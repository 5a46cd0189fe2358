"""A KV cache in Q8_0 on the CPU: the append to it, and attention over it.

quants  int8[n_seqs, n_kv_heads, max_seq_len, head_dim]          one layer of the cache
scales  float16[n_seqs, n_kv_heads, max_seq_len, head_dim / 32]  element = quant * scale, exact

Single tokens read quants as they lie, since reading is their work. A run of tokens multiplies much,
and unpacks a head's keys, then its values, once for 16 tokens.
"""

from typing import Any, Final

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from m40llm.device.cpu.attention import multiply_rows, parts_of, score_of, softmax_panel
from m40llm.device.cpu.panel import JIT, pack_panel
from m40llm.device.cpu.simd import (
    LANES,
    fmuladd,
    half_at,
    lane_sum,
    load_bytes,
    load_f32,
    mul,
    signed_to_f32,
    splat,
    store_f32,
)
from m40llm.device.ops import Q8Cache

BLOCK: Final = 32
_LARGEST_HALF: Final = np.float32(65504)
# At 2^-128 the reciprocal is 2^128, which FP32 does not have.
_LEAST: Final = np.float32(2.0**-128)
Floats = NDArray[np.float32]
Ints = NDArray[np.int32]


@njit(cache=True, **JIT)
def _quantise(x, quants, seq, pos, scales):
    """quants[seq[t], h, pos[t]] = x[t, h] in blocks; scales float32[t, h, block], not yet rounded.

    Bit for bit as gguf.quants has it: no fastmath. NaN makes its block's scale NaN.
    """
    for t in range(x.shape[0]):
        for head in range(x.shape[1]):
            for block in range(scales.shape[2]):
                highest, is_damaged = np.float32(0), False
                for d in range(block * BLOCK, (block + 1) * BLOCK):
                    highest = max(highest, abs(x[t, head, d]))
                    is_damaged |= np.isnan(x[t, head, d])
                scale = min(highest / np.float32(127), _LARGEST_HALF)
                inverse = np.float32(1) / scale if scale > _LEAST else np.float32(0)
                for d in range(block * BLOCK, (block + 1) * BLOCK):
                    magnitude = abs(x[t, head, d] * inverse)
                    if not magnitude < np.float32(127):
                        magnitude = np.float32(127)
                    whole = np.int32(magnitude)
                    if magnitude - np.float32(whole) >= np.float32(0.5):
                        whole += 1
                    quants[seq[t], head, pos[t], d] = -whole if x[t, head, d] < 0 else whole
                scales[t, head, block] = np.float32(np.nan) if is_damaged else scale


def append(x: Floats, cache: Q8Cache, seq: Ints, pos: Ints) -> None:
    """cache[seq[t], h, pos[t]] = x[t, h]   x [t, n_kv_heads, head_dim]"""
    scales = np.empty((*x.shape[:2], x.shape[2] // BLOCK), np.float32)
    _quantise(x, cache.quants, seq, pos, scales)
    cache.scales[seq, :, pos] = scales  # rounds to FP16: to nearest, ties to even


@njit(**JIT)
def _dot_key(q, q0, k, k_scales, row, n_blocks):
    """q[q0 : q0 + head_dim] . the row of k; q, k flat."""
    total = splat(0.0)
    for block in range(n_blocks):
        at, c = row * n_blocks + block, q0 + block * BLOCK
        low = signed_to_f32(load_bytes(k, at * BLOCK))
        high = signed_to_f32(load_bytes(k, at * BLOCK + LANES))
        products = fmuladd(high, load_f32(q, c + LANES), mul(low, load_f32(q, c)))
        total = fmuladd(products, splat(half_at(k_scales, 2 * at)), total)
    return lane_sum(total)


@njit(**JIT)
def _mix_block(weight, total, v, v_scales, row, n_blocks, block, out, c):
    """out[c : c + 32] = sum_p weight[p] / total * a block of v's row `row` + p; v, out flat."""
    low, high = splat(0.0), splat(0.0)
    for p in range(weight.shape[0]):
        at = (row + p) * n_blocks + block
        scaled = splat(weight[p] * half_at(v_scales, 2 * at))
        low = fmuladd(scaled, signed_to_f32(load_bytes(v, at * BLOCK)), low)
        high = fmuladd(scaled, signed_to_f32(load_bytes(v, at * BLOCK + LANES)), high)
    share = splat(np.float32(1) / total)
    store_f32(out, c, mul(low, share))
    store_f32(out, c + LANES, mul(high, share))


@njit(parallel=True, cache=True, **JIT)
def _attend_rows(q, k, k_scales, v, v_scales, seq, pos, scale, window, softcap, out):
    """Every (token, head) by itself. k, v: quants; scales: the bytes of the FP16, in a row."""
    n_heads, n_kv_heads, head_dim = q.shape[1], k.shape[1], q.shape[2]
    group_size, n_blocks = n_heads // n_kv_heads, head_dim // BLOCK
    q_flat, k_flat, v_flat, out_flat = q.reshape(-1), k.reshape(-1), v.reshape(-1), out.reshape(-1)
    for task in prange(q.shape[0] * n_heads):
        t, head = task // n_heads, task % n_heads
        n = pos[t] + 1
        first = max(0, n - window) if window else 0
        row = (seq[t] * n_kv_heads + head // group_size) * k.shape[2] + first
        weight = np.empty(n - first, np.float32)
        highest, total = np.float32(-np.inf), np.float32(0)
        for p in range(n - first):
            dot = _dot_key(q_flat, task * head_dim, k_flat, k_scales, row + p, n_blocks)
            weight[p] = score_of(dot, scale, softcap)
            highest = max(highest, weight[p])
        for p in range(n - first):
            weight[p] = np.exp(weight[p] - highest)
            total += weight[p]
        for block in range(n_blocks):
            c = task * head_dim + block * BLOCK
            _mix_block(weight, total, v_flat, v_scales, row, n_blocks, block, out_flat, c)


@njit(**JIT)
def _unpack(quants, scales, first_block, floats):
    """floats[:] = the elements from a block on   quants [n, head_dim], scales in bytes"""
    n_blocks = quants.shape[1] // BLOCK
    for p in range(quants.shape[0]):
        for block in range(n_blocks):
            scale = half_at(scales, 2 * (first_block + p * n_blocks + block))
            for d in range(block * BLOCK, (block + 1) * BLOCK):
                floats[p * quants.shape[1] + d] = scale * np.float32(quants[p, d])


@njit(parallel=True, cache=True, **JIT)
def _attend_run(q, k, k_scales, v, v_scales, s, pos, scale, window, softcap, out):
    """A run of tokens of sequence s, 16 of them and one head a task; k, v as in _attend_rows."""
    n_tokens, n_heads, head_dim = q.shape
    group_size, n_panels = n_heads // k.shape[1], (n_tokens + LANES - 1) // LANES
    for task in prange(n_heads * n_panels):
        head, first = task % n_heads, task // n_heads * LANES
        kv_head, rows = head // group_size, pos[first : first + LANES]
        n = rows[-1] + 1
        first_key = max(0, rows[0] + 1 - window) if window else 0
        n_keys = n - first_key
        queries = np.empty(head_dim * LANES, np.float32)
        scores = np.empty(n_keys * LANES, np.float32)
        mixed = np.empty(head_dim * LANES, np.float32)
        unpacked = np.empty(n_keys * head_dim, np.float32)
        block = ((s * k.shape[1] + kv_head) * k.shape[2] + first_key) * (head_dim // BLOCK)
        pack_panel(q[:, head], first, head_dim, queries, 0)
        _unpack(k[s, kv_head, first_key:n], k_scales, block, unpacked)
        multiply_rows(unpacked, 0, head_dim, 1, n_keys, head_dim, queries, scores)
        softmax_panel(scores, n_keys, first_key, rows, scale, window, softcap)
        _unpack(v[s, kv_head, first_key:n], v_scales, block, unpacked)
        multiply_rows(unpacked, 0, 1, head_dim, head_dim, n_keys, scores, mixed)
        for lane in range(rows.shape[0]):
            for d in range(head_dim):
                out[first + lane, head, d] = mixed[d * LANES + lane]


def attention(
    q: Floats,
    k: Q8Cache,
    v: Q8Cache,
    seq: Ints,
    pos: Ints,
    scale: float,
    out: Floats,
    *,
    window: int = 0,
    softcap: float = 0.0,
) -> None:
    """As attention.attention, over one layer of a cache in Q8_0."""
    how, caches = (
        (np.float32(scale), window, np.float32(softcap)),
        (k.quants, _bytes(k), v.quants, _bytes(v)),
    )
    for rows, is_run in parts_of(seq):
        if is_run:
            s = seq[rows.start]
            _attend_run(q[rows], *caches, s, pos[rows], *how, out[rows])
        else:
            _attend_rows(q[rows], *caches, seq[rows], pos[rows], *how, out[rows])


def _bytes(cache: Q8Cache) -> Any:
    """Of the scales, in a row: Numba's CPU JIT has no FP16."""
    return cache.scales.reshape(-1).view(np.uint8)
