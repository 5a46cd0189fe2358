"""ADD_NORMED: out += FACTOR * RMSNorm(x), the norm after a block, which wants a whole vector.

The product before gives x as it is. Each block that has a share of `out` takes all of x, for its
mean square, and gives its share: one more trip through the exchange. Blocks without a share take
nothing: x may be written again once `out` has come.

x, out   exchange words uint32[n_seqs, n_cols, 2]
NORM     float32[n_cols]; n_cols is a multiple of 4
"""

import math
from functools import cache
from typing import Any

from numba import cuda, float32, int32, uint32

from m40llm.kernels.bits import uint_as_float
from m40llm.kernels.intrinsics import load_float2_readonly
from m40llm.kernels.program import words
from m40llm.kernels.program.code import ask_next_norm, epoch_of, put_word, word_of
from m40llm.kernels.program.exchange import give2, take2, take4
from m40llm.kernels.program.form import N_THREADS, N_WARPS, Form
from m40llm.kernels.program.pending import pending_of
from m40llm.kernels.reduce import warp_sum
from m40llm.kernels.views import UNSEEN, array_at


@cache
def add_normed_of(form: Form) -> Any:
    """add_normed(code, squares, pool, n_pending): the instruction code.this. squares: shared
    float32[n_seqs * N_WARPS]."""
    n_seqs, has_factors, (_, finish_pending) = form.n_seqs, form.has_factors, pending_of(form)

    @cuda.jit(device=True, forceinline=True)
    def add_normed(code: Any, squares: Any, pool: Any, n_pending: Any) -> None:
        w = code.this
        finish_pending(code, n_pending, pool)
        put_word(code)
        x = array_at(w[words.X], (UNSEEN,), uint32)
        out = array_at(w[words.OUT], (UNSEEN,), uint32)
        norm = array_at(w[words.NORM], (UNSEEN,), float32)
        x_epoch, epoch = epoch_of(code, w[words.X_WRITER]), epoch_of(code, w[words.WRITER])
        old_epoch = epoch_of(code, w[words.OLD_WRITER])
        thread, n_cols = int32(cuda.threadIdx.x), word_of(w, words.N_COLS)
        n_pairs, n_blocks = int32(uint32(n_cols) >> uint32(1)), int32(cuda.gridDim.x)
        n_each = int32(uint32(n_pairs + n_blocks - 1) // uint32(n_blocks))
        first = int32(int32(cuda.blockIdx.x) * n_each)
        n_mine = min(n_each, int32(n_pairs - first))
        cuda.syncthreads()  # the next one's words are there, and `squares` have been read
        ask_next_norm(code)
        if n_mine > 0:
            for s in range(n_seqs):
                share = float32(0)
                for c in range(4 * thread, n_cols, 4 * N_THREADS):
                    x0, x1, x2, x3 = take4(x, int32(s * n_cols + c), x_epoch)
                    share += (x0 * x0 + x1 * x1) + (x2 * x2 + x3 * x3)
                share = warp_sum(share)
                if thread & 31 == 0:
                    squares[uint32(s * N_WARPS + (thread >> 5))] = share
            cuda.syncthreads()
            eps = uint_as_float(uint32(word_of(w, words.EPS)))
            for i in range(thread, n_mine * n_seqs, N_THREADS):
                s, pair = int32(i % n_seqs), int32(first + i // n_seqs)
                at, total = int32(s * n_cols + 2 * pair), float32(0)
                x0, x1 = take2(x, at, x_epoch)
                old_0, old_1 = take2(out, at, old_epoch)
                n0, n1 = load_float2_readonly(norm, int32(2 * pair))
                for warp in range(N_WARPS):
                    total += squares[uint32(s * N_WARPS + warp)]
                scale = float32(1) / math.sqrt(total / float32(n_cols) + eps)
                if has_factors:
                    scale *= uint_as_float(uint32(word_of(w, words.FACTOR)))
                give2(out, at, old_0 + scale * (n0 * x0), old_1 + scale * (n1 * x1), epoch)
            cuda.syncthreads()  # `squares` have been read: the next product's norm writes its own

    return add_normed
