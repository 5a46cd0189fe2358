"""Causal attention over the cache: single tokens against all before them, or a run of new tokens.

Up to MAX_VECTORS rows of a sequence are computed one by one, each as it is alone: its result has
the same bits beside any others. Until about 16 of them that is also faster than a run's panels.

q, out   float32[n_tokens, n_heads, head_dim]
k, v     float32[n_seqs, n_kv_heads, max_seq_len, head_dim]   one layer of the cache; in Q8_0 see
         q8_cache.py
seq,pos  int32[n_tokens]   row t attends to positions 0..pos[t] of sequence seq[t]
window   a row attends to its last `window` positions only; 0 for no limit
softcap  a score becomes softcap * tanh(score / softcap); 0 for no cap
"""

from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from m40llm.device.cpu.panel import JIT, TILE_ROWS, multiply_tile, pack_panel
from m40llm.device.cpu.simd import LANES
from m40llm.device.cpu.vectors import MAX_VECTORS

FAST: dict[str, Any] = {**JIT, "fastmath": {"reassoc", "contract", "nsz", "arcp"}}
Floats = NDArray[np.float32]
Ints = NDArray[np.int32]


@njit(**FAST)
def score_of(dot, scale, softcap):
    """Of a product of a query and a key."""
    score = dot * scale
    return softcap * np.tanh(score / softcap) if softcap else score


@njit(parallel=True, cache=True, **FAST)
def _attend_rows(q, k, v, seq, pos, scale, window, softcap, out):
    """Every (token, head) by itself: for few tokens, where reading the cache is the work."""
    n_heads, n_kv_heads = q.shape[1], k.shape[1]
    group_size = n_heads // n_kv_heads
    for task in prange(q.shape[0] * n_heads):
        t, head = task // n_heads, task % n_heads
        s, kv_head, n = seq[t], head // group_size, pos[t] + 1
        first = max(0, n - window) if window else 0
        weight = np.empty(n - first, np.float32)
        highest = np.float32(-np.inf)
        for p in range(first, n):
            score = np.float32(0)
            for d in range(q.shape[2]):
                score += q[t, head, d] * k[s, kv_head, p, d]
            weight[p - first] = score_of(score, scale, softcap)
            highest = max(highest, weight[p - first])
        total = np.float32(0)
        out[t, head, :] = np.float32(0)
        for p in range(first, n):
            w = np.exp(weight[p - first] - highest)
            total += w
            for d in range(q.shape[2]):
                out[t, head, d] += w * v[s, kv_head, p, d]
        for d in range(q.shape[2]):
            out[t, head, d] /= total


@njit(**FAST)
def softmax_panel(scores, n_keys, first_key, pos, scale, window, softcap):
    """Softmax over the keys in each of a panel's lanes; scores[16 key + lane] in place.

    Lane j may see keys up to pos[j], the last `window` of them; pos has a lane's row each.
    """
    for lane in range(LANES):
        last = pos[min(lane, pos.shape[0] - 1)] - first_key
        low = max(0, last + 1 - window) if window else 0
        highest = np.float32(-np.inf)
        factor = scale
        if softcap:
            factor = np.float32(1)
            for key in range(low, last + 1):
                at = key * LANES + lane
                scores[at] = score_of(scores[at], scale, softcap)
        for key in range(low, last + 1):
            highest = max(highest, scores[key * LANES + lane])
        total = np.float32(0)
        for key in range(n_keys):
            visible = low <= key <= last
            at = key * LANES + lane
            scores[at] = np.exp((scores[at] - highest) * factor) if visible else np.float32(0)
            total += scores[at]
        for key in range(low, last + 1):
            scores[key * LANES + lane] /= total


@njit(**JIT)
def multiply_rows(w, w0, row_stride, k_stride, n_rows, n_k, panel, sums):
    """sums[16 r + lane] = sum_k w[w0 + r row_stride + k k_stride] panel[16 k + lane], any n_rows.

    The last tile is moved back to end with the last row, since what lies beyond is not ours.
    """
    sums[: n_rows * LANES] = np.float32(0)
    whole = n_rows // TILE_ROWS * TILE_ROWS
    for r in range(0, whole, TILE_ROWS):
        multiply_tile(w, w0 + r * row_stride, row_stride, k_stride, n_k, panel, 0, sums, r * LANES)
    for r in range(whole, n_rows):
        for k in range(n_k):
            for lane in range(LANES):
                weight = w[w0 + r * row_stride + k * k_stride]
                sums[r * LANES + lane] += weight * panel[k * LANES + lane]


@njit(parallel=True, cache=True, **JIT)
def _attend_run(q, k, v, pos, scale, window, softcap, out):
    """A run of tokens of one sequence, 16 of them and one head a task.

    k, v  float32[n_kv_heads, max_seq_len, head_dim]
    """
    n_tokens, n_heads, head_dim = q.shape
    group_size, n_panels = n_heads // k.shape[0], (n_tokens + LANES - 1) // LANES
    k_flat, v_flat = k.reshape(-1), v.reshape(-1)
    for task in prange(n_heads * n_panels):
        head, first = task % n_heads, task // n_heads * LANES
        rows = pos[first : first + LANES]
        n = rows[-1] + 1
        first_key = max(0, rows[0] + 1 - window) if window else 0
        n_keys = n - first_key
        queries = np.empty(head_dim * LANES, np.float32)
        scores = np.empty(n_keys * LANES, np.float32)
        mixed = np.empty(head_dim * LANES, np.float32)
        pack_panel(q[:, head], first, head_dim, queries, 0)
        base = (head // group_size * k.shape[1] + first_key) * head_dim
        multiply_rows(k_flat, base, head_dim, 1, n_keys, head_dim, queries, scores)
        softmax_panel(scores, n_keys, first_key, rows, scale, window, softcap)
        multiply_rows(v_flat, base, 1, head_dim, head_dim, n_keys, scores, mixed)
        for lane in range(rows.shape[0]):
            for d in range(head_dim):
                out[first + lane, head, d] = mixed[d * LANES + lane]


def parts_of(seq: Ints) -> list[tuple[slice, bool]]:
    """(rows, whether they are a run): long runs of a sequence each by itself, else all at once."""
    if len(seq) <= MAX_VECTORS:
        return [(slice(0, len(seq)), False)]
    ends = [*(np.flatnonzero(np.diff(seq)) + 1).tolist(), len(seq)]
    parts: list[tuple[slice, bool]] = []
    for first, end in zip([0, *ends], ends, strict=False):
        is_run = end - first > MAX_VECTORS
        if not is_run and parts and not parts[-1][1]:
            first = parts.pop()[0].start
        parts.append((slice(first, end), is_run))
    return parts


def attention(
    q: Floats,
    k: Floats,
    v: Floats,
    seq: Ints,
    pos: Ints,
    scale: float,
    out: Floats,
    *,
    window: int = 0,
    softcap: float = 0.0,
) -> None:
    """out[t] = softmax(scale * q[t] . k) v, causal, for a ragged batch; see above for the options.

    Rows of one sequence stand together, their positions ascending.
    """
    how = np.float32(scale), window, np.float32(softcap)
    for rows, is_run in parts_of(seq):
        if is_run:
            s = seq[rows.start]
            _attend_run(q[rows], k[s], v[s], pos[rows], *how, out[rows])
        else:
            _attend_rows(q[rows], k, v, seq[rows], pos[rows], *how, out[rows])
