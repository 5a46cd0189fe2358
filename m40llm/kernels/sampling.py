"""Sampling on the device: from logits to tokens, with all that the next step needs; no host.

token = draw(min_p(top_p(top_k(penalties(logits + bias))))), the order and meaning of the host's
chain (engine/sampling.py): filters at temperature 1, then a draw at `temperature`, 0 being greedy.
The kept tokens are always the first few by (logit, id), so each filter is one key (order.py):
the smallest kept. The draw is the host's too: inverse CDF, likeliest first, at the same uniform
number, Philox4x64-10 keyed by the seed with the position as counter: the same token but where
FP32 rounding moves a boundary across the number. typical_p is no such prefix: not here.

logits       float32[n_rows, vocab_size], at most 4,194,304; overwritten with the penalised ones
seq, pos     int32[n_rows]: whose state serves the row (no two rows the same), and the position
             that the token will take
state        SamplerState below; the token drawn is counted in its history
out          int32[n_rows]; -1 where no logit is above -inf
probability  integers in units of 2^-40 of the likeliest: sums are exact, in any order; tokens
             rarer than that are never drawn. exp in FP32.
grid         one block of 512 threads a row
bytes        8 * n_rows * vocab_size: two passes over the logits, and half that again for the
             history of rows with penalties. Where top_k is 0, up to 13 passes, where it is above
             512, 18, from the L2
shared       24,852 bytes
GM200        at most 128 registers: one block, 512 threads, an SM
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
from numba import cuda, float32, int32, int64

from m40llm.kernels.argmax import check_vocab_size
from m40llm.kernels.block_reduce import block_max
from m40llm.kernels.contract import Kernel, Launcher, ceil_div, check_array
from m40llm.kernels.nucleus import draw_from_list, draw_from_row
from m40llm.kernels.order import (
    N_BINS,
    count,
    gather_top,
    id_of,
    key_in_list,
    key_in_row,
    key_of,
    logit_of,
    select_over,
)
from m40llm.kernels.philox import uniform_bits

N_THREADS: Final = 512
MAX_REGISTERS: Final = 128
_MINUS_INFINITY: Final = float("-inf")

# Columns of SamplerState.settings.
TEMPERATURE, TOP_P, MIN_P, REPETITION, PRESENCE, FREQUENCY = range(6)
N_SETTINGS: Final = 6
GREEDY: Final = (0.0, 1.0, 0.0, 1.0, 0.0, 0.0)  # a row of them that neither filters nor penalises

# Steps of SamplerState.history.
IN_PROMPT: Final = 1
IN_ANSWER: Final = 2


@dataclass(frozen=True)
class SamplerState:
    """Device buffers, a row a sequence: how it samples, and which tokens it has seen.

    settings     float32[n_seqs, 6]         temperature, top_p, min_p, then the repetition,
                                            presence and frequency penalties; as SamplingParams
    top_k        int32[n_seqs]              0: all
    seed         uint64[n_seqs]
    bias_ids     int32[n_seqs, max_bias]    token ids, each once; -1 where unused
    bias_values  float32[n_seqs, max_bias]  added to their logits; -inf bans
    history      int32[n_seqs, vocab_size]  1 if the prompt holds the token, plus 2 for each time
                                            that the answer does
    """

    settings: Any
    top_k: Any
    seed: Any
    bias_ids: Any
    bias_values: Any
    history: Any

    def check(self, vocab_size: int) -> None:
        """KernelContractError unless types and shapes are these."""
        check_array("settings", self.settings, np.float32, (None, N_SETTINGS))
        n_seqs = self.settings.shape[0]
        check_array("top_k", self.top_k, np.int32, (n_seqs,))
        check_array("seed", self.seed, np.uint64, (n_seqs,))
        check_array("bias_ids", self.bias_ids, np.int32, (n_seqs, None))
        check_array("bias_values", self.bias_values, np.float32, self.bias_ids.shape)
        check_array("history", self.history, np.int32, (n_seqs, vocab_size))


@cuda.jit(device=True)
def _add_bias(x: Any, ids: Any, values: Any) -> None:
    for entry in range(cuda.threadIdx.x, ids.size, cuda.blockDim.x):
        if ids[entry] >= 0:
            x[ids[entry]] += values[entry]
    cuda.syncthreads()


@cuda.jit(device=True)
def _penalised(logit: Any, seen: Any, settings: Any) -> Any:
    """A seen token's logit, rounded where the host rounds: once for each of the two steps.

    A fused multiply-add says so: of a product and a sum the compiler makes one rounding or two as
    it likes.
    """
    repetition = settings[REPETITION]
    if repetition != float32(1.0):
        if logit > float32(0.0):
            logit = logit / repetition
        else:
            logit = cuda.fma(logit, repetition, float32(0.0))
    n_answered = seen // IN_ANSWER
    if n_answered > 0:
        logit -= cuda.fma(settings[FREQUENCY], float32(int32(n_answered)), settings[PRESENCE])
    return logit


@cuda.jit(device=True)
def _penalise(x: Any, history: Any, settings: Any) -> Any:
    """Penalties on the whole row; the largest key of this thread's entries, -1 for none."""
    best = int64(-1)
    is_plain = (
        settings[REPETITION] == float32(1.0)
        and settings[PRESENCE] == float32(0.0)
        and settings[FREQUENCY] == float32(0.0)
    )
    for i in range(cuda.threadIdx.x, x.size, cuda.blockDim.x):
        logit = x[i]
        if not is_plain and history[i] > 0:
            logit = _penalised(logit, history[i], settings)
            x[i] = logit
        best = max(best, key_of(logit, i))
    cuda.syncthreads()
    return best


_select_count: Final = select_over(key_in_row, count)
_select_count_kept: Final = select_over(key_in_list, count)


@cuda.jit(device=True)
def draw_token(
    x: Any, pos: Any, settings: Any, k: Any, seed: Any, bias_ids: Any, bias_values: Any,
    history: Any, kept: Any, bins: Any, scratch: Any, found: Any, n_kept: Any,
) -> Any:  # fmt: skip
    """The token of a row of logits, x, which are overwritten; -1 for none. The whole block calls.

    kept, bins, scratch, found  shared int64[2 * blockDim.x], [N_BINS], [32], [2]
    n_kept                      shared int32[1]
    """
    zero, n = float32(0.0), x.size
    _add_bias(x, bias_ids, bias_values)
    thread_best = _penalise(x, history, settings)
    best = block_max(thread_best, scratch)
    temperature, top_p, min_p = settings[TEMPERATURE], settings[TOP_P], settings[MIN_P]
    if not logit_of(best) > float32(_MINUS_INFINITY):
        return int64(-1)
    if not temperature > zero:
        return id_of(best)
    uniform = uniform_bits(seed, pos)
    if 0 < k <= cuda.blockDim.x and k < n:
        n_found = gather_top(x, n, k, thread_best, kept, n_kept, bins, found)
        lowest = _select_count_kept(kept, n_found, int64(0), zero, zero, k - 1, bins, found)
        return draw_from_list(
            kept, n_found, lowest, best, temperature, top_p, min_p, uniform, bins, found, scratch
        )
    lowest = int64(0)
    if 0 < k < n:
        lowest = _select_count(x, n, lowest, zero, zero, k - 1, bins, found)
    return draw_from_row(
        x, n, lowest, best, temperature, top_p, min_p, uniform, bins, found, scratch
    )


@cache
def _compile(n_threads: int) -> Kernel:
    capacity = 2 * n_threads

    def sample_kernel(
        logits: Any, seq: Any, pos: Any, settings: Any, top_k: Any, seed: Any,
        bias_ids: Any, bias_values: Any, history: Any, out: Any,
    ) -> None:  # fmt: skip
        kept = cuda.shared.array(capacity, int64)
        bins = cuda.shared.array(N_BINS, int64)
        scratch = cuda.shared.array(32, int64)
        found = cuda.shared.array(2, int64)
        n_kept = cuda.shared.array(1, int32)
        row = cuda.blockIdx.x
        at = seq[row]
        token_id = draw_token(
            logits[row], pos[row], settings[at], top_k[at], seed[at], bias_ids[at],
            bias_values[at], history[at], kept, bins, scratch, found, n_kept,
        )  # fmt: skip
        if cuda.threadIdx.x == 0:
            out[row] = int32(token_id)
            if token_id >= 0:
                history[at, token_id] += IN_ANSWER

    return Kernel(sample_kernel, registers=MAX_REGISTERS)


@cache
def _compile_note_prompt() -> Kernel:
    def note_prompt_kernel(token_ids: Any, seq: Any, history: Any) -> None:
        token = cuda.grid(1)
        if token < token_ids.size:
            cuda.atomic.or_(history, (seq[token], token_ids[token]), IN_PROMPT)

    return Kernel(note_prompt_kernel, registers=32)


def sample(
    logits: Any,
    seq: Any,
    pos: Any,
    state: SamplerState,
    out: Any,
    *,
    stream: Launcher,
    n_threads: int = N_THREADS,
) -> None:
    """out[r] = the next token of sequence seq[r], from logits[r], which are overwritten."""
    check_array("logits", logits, np.float32, (None, None))
    n_rows, vocab_size = logits.shape
    check_vocab_size(vocab_size)
    check_array("seq", seq, np.int32, (n_rows,))
    check_array("pos", pos, np.int32, (n_rows,))
    check_array("out", out, np.int32, (n_rows,))
    state.check(vocab_size)
    if n_rows:
        buffers = (state.settings, state.top_k, state.seed, state.bias_ids, state.bias_values)
        args = (logits, seq, pos, *buffers, state.history, out)
        stream.launch(_compile(n_threads), n_rows, n_threads, *args)


def note_prompt(token_ids: Any, seq: Any, history: Any, *, stream: Launcher) -> None:
    """Note in the history that token_ids[t] stands in the prompt of sequence seq[t]."""
    check_array("token_ids", token_ids, np.int32, (None,))
    check_array("seq", seq, np.int32, token_ids.shape)
    check_array("history", history, np.int32, (None, None))
    n_tokens = token_ids.shape[0]
    if n_tokens:
        kernel, grid = _compile_note_prompt(), ceil_div(n_tokens, 256)
        stream.launch(kernel, grid, 256, token_ids, seq, history)
