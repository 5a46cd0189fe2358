"""Who does what of a product of a decode program: blocks, panels, stages, spans, slices."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from m40llm.device.gpu.bound import Buffer, Other, Product, Setting, address
from m40llm.device.gpu.card import Card
from m40llm.device.gpu.decode_state import filled
from m40llm.kernels.contract import ceil_div
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

_TURNS: Final = 4  # buffers of parts


def encode_shares(row: NDArray[np.int64], product: Product, setting: Setting) -> None:
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


def encode_slices(
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


def encode_choice(row: NDArray[np.int64], logits: NDArray[np.int64], form: Form) -> None:
    """Whose logits are whose, as the product before has it: for masks."""
    type = form.types[int(logits[words.OP]) - words.PRODUCT]
    row[words.N_ROWS] = group_rows(type, form.n_seqs)
    for word in (words.GROUPS_A_BLOCK, words.GROUPS_LEFT, words.SLICE_SHIFT):
        row[word] = logits[word]


def _square_words(n_seqs: int, n_blocks: int) -> int:
    """uint32 of PART_SQUARES, if no block has a slice only."""
    return n_blocks * n_seqs * MAX_SLICES * 2


def new_parts(
    card: Card, instructions: Sequence[Product | Other], form: Form, n_blocks: int
) -> tuple[Buffer, ...] | None:
    """What sliced products hand each other their parts in, by turns: squares, then parts.

    A block that merges parts of a product may be behind one that multiplies for the third after
    it, where Q, K and V are several products; the one after that waits for all.
    """
    if not is_sliced(form.n_seqs):
        return None
    most = [0] * _TURNS
    for i, product in enumerate(one for one in instructions if isinstance(one, Product)):
        w = product.w
        rows = group_rows(w.type, form.n_seqs)
        n_parts = slices_of(w.type, w.n_cols, form.n_seqs, n_blocks).n_parts
        n_words = n_parts * ceil_div(w.n_rows, rows) * rows * form.n_seqs * 2
        most[i % _TURNS] = max(most[i % _TURNS], n_words)
    first = _square_words(form.n_seqs, n_blocks)
    return tuple(filled(card, (first + n_words,), np.uint32) for n_words in most)
