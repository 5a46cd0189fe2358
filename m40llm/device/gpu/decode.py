"""The instructions of a decode program as its kernel reads them: addresses, sizes and shares."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m40llm.device.gpu.card import Card
from m40llm.device.gpu.decode_state import filled
from m40llm.kernels.attention_common import score_factors, window_keys
from m40llm.kernels.contract import ceil_div
from m40llm.kernels.planes import Planes
from m40llm.kernels.program import words
from m40llm.kernels.program.form import (
    MAX_SLICES,
    Form,
    chunk_spans,
    group_rows,
    is_sliced,
    leaves,
    panel_groups,
    pending_groups,
    slices_of,
    span_cols,
    stage_cols,
)
from m40llm.kernels.program.state import DecodeState
from m40llm.kernels.unpack import LANES

Buffer = Any
EFFECTS = {
    "add": words.ADD,
    "swiglu": words.SWIGLU,
    "geglu": words.SWIGLU,
    "rotate": words.ROTATE,
    "store": words.STORE,
    "logits": words.LOGITS,
}


def address(buffer: Any) -> int:
    """Where a buffer begins, on its card."""
    return int(buffer.ctypes.data if isinstance(buffer, np.ndarray) else buffer.address)


@dataclass(frozen=True)
class Product:
    """One matrix product of a program: buffers and planes in place of names.

    angles  that Q and K are turned by, see bind.angles_on
    factor  that results are multiplied by, before the bias is added
    cols    the columns that it takes, where a matrix is shared by several instructions that add
    """

    effect: str
    w: Planes
    x: Buffer
    out: Buffer | None = None
    norm: Buffer | None = None
    bias: Buffer | None = None
    first_row: int = 0
    angles: Buffer | None = None
    factor: float = 1.0
    cols: range | None = None

    @property
    def of_cols(self) -> range:
        return range(self.w.n_cols) if self.cols is None else self.cols


def in_parts(product: Product, n_seqs: int) -> list[Product]:
    """The product as up to four that add, each of columns of x that find room in shared memory, if
    that lets the next instruction finish its results."""
    cols = stage_cols(product.w.n_cols, n_seqs, product.norm is not None)
    starts = range(0, product.w.n_cols, cols)
    adds = product.effect == "add" and product.norm is None and not is_sliced(n_seqs)
    if not adds or not 1 < len(starts) <= 4:
        return [product]
    parts = [range(start, min(start + cols, product.w.n_cols)) for start in starts]
    return [
        replace(product, cols=part, bias=None if part.start else product.bias) for part in parts
    ]


@dataclass(frozen=True)
class Other:
    """Any other instruction.

    q_norm, k_norm  of ATTEND, with the angles that it turns Q and K by; None if they come turned
    window          of ATTEND: keys that a row sees, 0 for all
    norm            of ADD_NORMED
    factor          that embeddings, or what ADD_NORMED adds, are multiplied by
    """

    operation: int
    x: Buffer | None = None
    out: Buffer | None = None
    k_cache: Buffer | None = None
    v_cache: Buffer | None = None
    q_norm: Buffer | None = None
    k_norm: Buffer | None = None
    angles: Buffer | None = None
    window: int = 0
    norm: Buffer | None = None
    factor: float = 1.0


@dataclass(frozen=True)
class Setting:
    """What all instructions of a program share.

    table   uint8[vocab_size, row_bytes]: the embedding, the file's own bytes, of form.table_type
    scale   of attention's scores
    parts   two buffers, see new_parts; None if the products of this form are not sliced
    """

    form: Form
    state: DecodeState
    table: Buffer
    eps: float
    scale: float
    max_seq_len: int
    parts: tuple[Buffer, Buffer] | None = None


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
                _encode_shares(row, instruction, setting)
            else:
                _encode_slices(row, instruction, setting, setting.parts[n_products % 2])
            n_products += 1
        else:
            _encode_other(row, instruction)
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
    state, sampler, row = setting.state, setting.state.sampler, np.zeros(words.N_WORDS, np.int64)
    inner, _ = score_factors(setting.scale, 0.0)
    numbers = (
        (words.EPS, _bits(setting.eps)),
        (words.INNER, _bits(inner)),
        (words.MAX_SEQ_LEN, setting.max_seq_len),
        (words.N_SPLITS, state.partial.shape[2]),
        (words.VOCAB_SIZE, setting.table.shape[0]),
        (words.ROW_BYTES, setting.table.shape[1]),
        (words.MAX_BIAS, sampler.bias_ids.shape[1]),
    )
    buffers = (
        *((words.SEQ, state.seq), (words.ROW_POS, state.row_pos), (words.GO, state.go)),
        (words.BEST, state.best),
        *((words.MASS, state.mass), (words.RAW, state.raw), (words.LOGITS_LEFT, state.logits)),
        *((words.TABLE, setting.table), (words.PARTIAL, state.partial)),
        (words.POS, state.pos),
        *((words.TOKEN_IDS, state.token_ids), (words.N_LEFT, state.n_left)),
        *((words.STOP_IDS, state.stop_ids), (words.CONTROL, state.control)),
        *((words.COMMANDS, state.commands), (words.ANSWERS, state.answers)),
        *((words.N_TAKEN, state.n_taken), (words.SETTINGS, sampler.settings)),
        *((words.TOP_K, sampler.top_k), (words.SEED, sampler.seed)),
        *((words.BIAS_IDS, sampler.bias_ids), (words.BIAS_VALUES, sampler.bias_values)),
        (words.HISTORY, sampler.history),
    )
    for word, number in numbers:
        row[word] = number
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


def _encode_shares(row: NDArray[np.int64], product: Product, setting: Setting) -> None:
    """Who does what of a product: blocks, panels, stages, spans; all divisions are made here."""
    w, n_seqs, n_blocks = product.w, setting.form.n_seqs, int(setting.state.best.shape[1])
    n_groups, n_cols = ceil_div(w.n_rows, group_rows(w.type, n_seqs)), len(product.of_cols)
    cols, span = stage_cols(n_cols, n_seqs, product.norm is not None), span_cols(w.type, n_seqs)
    n_stages = ceil_div(n_cols, cols)
    row[words.GROUPS_A_BLOCK], row[words.GROUPS_LEFT] = divmod(n_groups, n_blocks)
    spans = tuple(ceil_div(n, span) for n in (min(cols, n_cols), n_cols - (n_stages - 1) * cols))
    chunk = chunk_spans(w.type, ceil_div(n_groups, n_blocks), spans[0], n_seqs)
    row[words.N_STAGES], row[words.STAGE_COLS], row[words.CHUNK_SPANS] = n_stages, cols, chunk
    for word, n_spans in zip((words.STAGE_SPANS, words.LAST_SPANS), spans, strict=True):
        n_chunks = ceil_div(n_spans, chunk)
        row[word : word + 3] = n_spans, n_chunks, ceil_div(1 << 16, n_chunks)
    n_chunks = int(row[words.STAGE_CHUNKS])
    row[words.PANEL_GROUPS] = panel_groups(w.type, n_chunks, n_seqs)
    if n_stages == 1 and product.effect != "logits":
        row[words.PENDING_GROUPS] = pending_groups(w.type, n_chunks, n_seqs)
        row[words.LEAVES] = leaves(ceil_div(n_groups, n_blocks), spans[0])


def _encode_slices(
    row: NDArray[np.int64], product: Product, setting: Setting, parts: Buffer
) -> None:
    """The same of a sliced product."""
    w, n_seqs, n_blocks = product.w, setting.form.n_seqs, int(setting.state.best.shape[1])
    slices = slices_of(w.type, w.n_cols, n_seqs, n_blocks)
    n_groups = ceil_div(w.n_rows, group_rows(w.type, n_seqs))
    row[words.GROUPS_A_BLOCK], row[words.GROUPS_LEFT] = divmod(n_groups, n_blocks // slices.n)
    row[words.SLICE_SHIFT], row[words.SLICE_COLS] = slices.n.bit_length() - 1, slices.cols
    row[words.N_STAGES], row[words.N_PARTS] = slices.n_stages, slices.n_parts
    row[words.PART_SQUARES] = address(parts)
    row[words.PARTS] = address(parts) + 4 * _square_words(n_seqs, n_blocks)


def _square_words(n_seqs: int, n_blocks: int) -> int:
    """uint32 of PART_SQUARES, if no block has a slice only."""
    return n_blocks * n_seqs * MAX_SLICES * 2


def new_parts(
    card: Card, instructions: Sequence[Product | Other], form: Form, n_blocks: int
) -> tuple[Buffer, Buffer] | None:
    """What sliced products hand each other their parts in, by turns: squares, then parts."""
    if not is_sliced(form.n_seqs):
        return None
    most = [0, 0]
    for i, product in enumerate(one for one in instructions if isinstance(one, Product)):
        w = product.w
        rows = group_rows(w.type, form.n_seqs)
        n_parts = slices_of(w.type, w.n_cols, form.n_seqs, n_blocks).n_parts
        n_words = n_parts * ceil_div(w.n_rows, rows) * rows * form.n_seqs * 2
        most[i % 2] = max(most[i % 2], n_words)
    first = _square_words(form.n_seqs, n_blocks)
    even, odd = (filled(card, (first + n_words,), np.uint32) for n_words in most)
    return even, odd
