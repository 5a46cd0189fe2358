"""The instructions of a decode program as its kernel reads them (kernels/program/words.py)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m40llm.device.gpu.bound import Other, Product, Setting, address
from m40llm.device.gpu.shares import encode_choice, encode_shares, encode_slices
from m40llm.kernels.attention_common import score_factors, window_keys
from m40llm.kernels.program import words
from m40llm.kernels.program.form import Form, span_cols
from m40llm.kernels.program.state import DecodeState
from m40llm.kernels.unpack import LANES

EFFECTS = {
    "add": words.ADD,
    "swiglu": words.SWIGLU,
    "geglu": words.SWIGLU,
    "rotate": words.ROTATE,
    "store": words.STORE,
    "logits": words.LOGITS,
}


def encode(instructions: Sequence[Product | Other], setting: Setting) -> NDArray[np.int64]:
    """int64[n_instructions, N_WORDS], as kernels/program/words.py says.

    It has addresses only: hold the instructions for as long as the program is run.
    """
    program = np.zeros((len(instructions), words.N_WORDS), np.int64)
    program[:] = _shared_words(setting)
    program[:, words.PC] = np.arange(len(instructions))
    program[:, words.AFTER_NEXT] = (program[:, words.PC] + 2) % len(instructions)
    n_products = 0
    writers: dict[int, int] = {}  # of each exchange buffer, by address: who wrote it last
    for i, (row, instruction) in enumerate(zip(program, instructions, strict=True)):
        if instruction.x is not None:
            row[words.X], row[words.X_COLS] = address(instruction.x), instruction.x.shape[1]
            row[words.X_WRITER] = writers[address(instruction.x)]
        if instruction.out is not None:
            out = address(instruction.out)
            row[words.OUT], row[words.OUT_COLS] = out, instruction.out.shape[1]
            row[words.OLD_WRITER] = row[words.WRITER] = writers.get(out, 0)
            adds = isinstance(instruction, Product) and instruction.effect == "add"
            if adds or i == 0 or instruction.out is not instructions[i - 1].out:
                row[words.WRITER] = writers[out] = i
        row[words.FACTOR] = _bits(instruction.factor)
        if isinstance(instruction, Product):
            _encode_product(row, instruction, setting.form)
            if setting.parts is None:
                encode_shares(row, instruction, setting)
            else:
                parts = setting.parts[n_products % len(setting.parts)]
                encode_slices(row, instruction, setting, parts)
            n_products += 1
        else:
            _encode_other(row, instruction)
            if instruction.operation == words.CHOOSE:
                encode_choice(row, program[i - 1], setting.form)
    return program


def _encode_other(row: NDArray[np.int64], one: Other) -> None:
    row[words.OP] = one.operation
    for word, buffer in (
        *((words.K_CACHE, one.k_cache), (words.V_CACHE, one.v_cache)),
        *((words.K_NORM, one.k_norm), (words.ANGLES, one.angles)),
    ):
        row[word] = 0 if buffer is None else address(buffer)
    row[words.WINDOW] = window_keys(one.window)
    for norm in (one.q_norm, one.norm):
        if norm is not None:
            row[words.NORM] = address(norm)
            row[words.N_COLS] = norm.size  # who comes before asks for so much of it


def _shared_words(setting: Setting) -> NDArray[np.int64]:
    row, inner = state_words(setting.state, setting.max_seq_len), score_factors(setting.scale, 0)[0]
    for word, number in (
        (words.EPS, _bits(setting.eps)),
        (words.INNER, _bits(inner)),
        (words.N_SPLITS, setting.state.partial.shape[2]),
        (words.PARTIAL, address(setting.state.partial)),
        (words.ROW_BYTES, setting.table.shape[1]),
        (words.TABLE, address(setting.table)),
    ):
        row[word] = number
    return row


def state_words(state: DecodeState, max_seq_len: int) -> NDArray[np.int64]:
    """int64[N_WORDS] that say where a state is, and how large; hold the state as long."""
    sampler, row = state.sampler, np.zeros(words.N_WORDS, np.int64)
    row[words.MAX_SEQ_LEN], row[words.VOCAB_SIZE] = max_seq_len, state.raw.shape[1]
    row[words.MAX_BIAS] = sampler.bias_ids.shape[1]
    buffers = (
        *((words.SEQ, state.seq), (words.ROW_POS, state.row_pos), (words.GO, state.go)),
        (words.BEST, state.best),
        *((words.MASS, state.mass), (words.RAW, state.raw), (words.LOGITS_LEFT, state.logits)),
        (words.POS, state.pos),
        *((words.TOKEN_IDS, state.token_ids), (words.N_LEFT, state.n_left)),
        *((words.STOP_IDS, state.stop_ids), (words.CONTROL, state.control)),
        *((words.COMMANDS, state.commands), (words.ANSWERS, state.answers)),
        *((words.N_TAKEN, state.n_taken), (words.SETTINGS, sampler.settings)),
        *((words.TOP_K, sampler.top_k), (words.SEED, sampler.seed)),
        *((words.BIAS_IDS, sampler.bias_ids), (words.BIAS_VALUES, sampler.bias_values)),
        *((words.HISTORY, sampler.history), (words.MASKED, state.masked)),
        (words.MASKS, state.masks),
    )
    for word, buffer in buffers:
        row[word] = address(buffer)
    return row


def _bits(number: Any) -> int:
    """Of a float32."""
    return int(np.float32(number).view(np.uint32))


def _encode_product(row: NDArray[np.int64], product: Product, form: Form) -> None:
    w = product.w
    row[words.OP] = words.PRODUCT + form.types.index(w.type)
    row[words.KIND] = EFFECTS[product.effect]
    first = product.of_cols.start
    row[words.N_ROWS], row[words.N_COLS] = w.n_rows, len(product.of_cols)
    if product.effect in ("swiglu", "geglu"):  # a gate row and its up row
        row[words.PAIR_STEP], row[words.PAIR_JUMP] = 1, w.n_rows // 2
    else:
        row[words.PAIR_STEP], row[words.PAIR_JUMP] = 2, 1
    row[words.X] += 8 * first  # an exchange word has 8 bytes
    row[words.N_UNITS] = product.of_cols.stop // LANES[w.type].n_cols
    row[words.FIRST_SPAN] = first // span_cols(w.type, form.n_seqs)
    if product.effect == "store":
        row[words.OUT] += 8 * product.first_row
    else:
        row[words.FIRST_ROW] = product.first_row
    for word, plane in ((words.QUANTS, w.quants), (words.HIGHS, w.highs), (words.SCALES, w.scales)):
        given = w.quants if plane is None else plane  # a kernel wants an address that is there
        row[word], row[word + 1] = address(given), given.shape[1]
    for word, vector in (
        *((words.NORM, product.norm), (words.BIAS, product.bias)),
        (words.ANGLES, product.angles),
    ):
        row[word] = 0 if vector is None else address(vector)
