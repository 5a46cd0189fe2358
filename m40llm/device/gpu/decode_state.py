"""What a decode program keeps on a card, as it is before the first step."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m40llm.device.gpu.card import Card
from m40llm.kernels.program import state as rings
from m40llm.kernels.program.attend_shape import split_shape
from m40llm.kernels.program.epilogue import LOWEST
from m40llm.kernels.program.form import Form
from m40llm.kernels.program.mask import n_mask_words
from m40llm.kernels.program.state import DecodeState
from m40llm.kernels.sampling import GREEDY, N_SETTINGS, SamplerState

Buffer = Any


@dataclass(frozen=True)
class HostRings:
    """The host's side of what lies in pinned memory: the rings, and the masks."""

    commands: NDArray[np.int64]
    answers: NDArray[np.int64]
    n_taken: NDArray[np.int64]
    masks: NDArray[np.int64]


def new_exchange(card: Card, n_seqs: int, width: int) -> Buffer:
    """uint32[n_seqs, width, 2] of epoch 0: what instructions hand each other."""
    return filled(card, (n_seqs, width, 2), np.uint32)


def new_state(
    card: Card,
    n_seqs: int,
    vocab_size: int,
    n_blocks: int,
    max_bias: int = 1,
    *,
    partial: Buffer = None,
    raw: Buffer = None,
) -> tuple[DecodeState, HostRings]:
    """All slots idle and greedy, slot s in the cache's sequence s.

    n_blocks  that have logits
    partial   of attention; None where ops attend
    raw       where logits come; None: a new buffer
    """
    n, of_logits = n_seqs, ((n_seqs, vocab_size), np.dtype(np.float32))
    commands, host_commands = card.alloc_mapped((rings.N_COMMANDS, 2), np.int64)
    answers, host_answers = card.alloc_mapped((rings.N_ANSWERS, 2), np.int64)
    n_taken, host_taken = card.alloc_mapped((1,), np.int64)
    masks, host_masks = card.alloc_mapped((n, n_mask_words(vocab_size)), np.int64)
    seq = card.alloc((n,), np.dtype(np.int32))
    card.write(seq, np.arange(n, dtype=np.int32))
    state = DecodeState(
        token_ids=filled(card, (n,), np.int32),
        pos=filled(card, (n,), np.int32),
        row_pos=filled(card, (n,), np.int32, -1),
        seq=seq,
        n_left=filled(card, (n,), np.int32),
        stop_ids=filled(card, (n, rings.MAX_STOP_IDS), np.int32, -1),
        control=filled(card, (rings.N_CONTROL,), np.int64),
        go=filled(card, (1,), np.int64),
        arrived=filled(card, (3,), np.uint64),
        best=filled(card, (n, n_blocks), np.int64),
        mass=_empty_mass(card, n, n_blocks),
        partial=partial,
        raw=card.alloc(*of_logits) if raw is None else raw,
        logits=card.alloc(*of_logits),
        sampler=_greedy(card, n, vocab_size, max_bias),
        masked=filled(card, (n,), np.int32),
        commands=commands,
        answers=answers,
        n_taken=n_taken,
        masks=masks,
    )
    return state, HostRings(host_commands, host_answers, host_taken, host_masks)


def new_partial(card: Card, form: Form, n_blocks: int) -> Buffer:
    """Of a program's attention: DecodeState.partial."""
    return filled(card, split_shape(form, n_blocks), np.uint32)


def _empty_mass(card: Card, n: int, n_blocks: int) -> Buffer:
    """Of blocks without logits: no maximum, nothing of the sum."""
    mass = card.alloc((n, n_blocks, 2), np.dtype(np.float32))
    card.write(mass, np.tile(np.array([LOWEST, 0], np.float32), (n, n_blocks, 1)))
    return mass


def _greedy(card: Card, n: int, vocab_size: int, max_bias: int) -> SamplerState:
    settings = card.alloc((n, N_SETTINGS), np.dtype(np.float32))
    card.write(settings, np.tile(np.array(GREEDY, np.float32), (n, 1)))
    return SamplerState(
        settings=settings,
        top_k=filled(card, (n,), np.int32),
        seed=filled(card, (n,), np.uint64),
        bias_ids=filled(card, (n, max_bias), np.int32, -1),
        bias_values=filled(card, (n, max_bias), np.float32),
        history=filled(card, (n, vocab_size), np.int32),
    )


def filled(card: Card, shape: tuple[int, ...], dtype: Any, value: float = 0) -> Buffer:
    buffer = card.alloc(shape, np.dtype(dtype))
    card.write(buffer, np.full(shape, value, dtype))
    return buffer
