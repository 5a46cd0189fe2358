"""How a model would lie on a Tesla M40, for whoever has none at hand: plans of a card imagined."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from gguf import GGMLQuantizationType as GGMLType

from m40llm.device.cpu.ops import CpuOps
from m40llm.device.gpu import held
from m40llm.gguf import GGUFFile
from m40llm.llm.fit import choices_of, fitting, longest
from m40llm.llm.plan import Plan, Reckoner
from m40llm.model.hparams import HParams
from m40llm.model.kv_cache import KV_TYPES


def free_bytes(memory_bytes: int, *, has_ecc: bool) -> int:
    """What a card has left: ECC in GDDR5 keeps a sixteenth, driver and context take 256 MiB."""
    return memory_bytes * (15 if has_ecc else 16) // 16 - (256 << 20)


# ECC is on as it is sold.
M40S: Final = {f"M40 {size} GB": free_bytes(size << 30, has_ecc=True) for size in (12, 24)}


@dataclass(frozen=True)
class CardPlan:
    """What fits on a card.

    best      what `--fit --gpu-layers auto` picks; there is always one, if on the CPU alone
    contexts  by cache type: the longest context with all layers there, None where none is
    """

    card: str
    free: int
    best: Plan
    contexts: dict[str, int | None]


class _Card:
    """Implements `Room` with what a card holds a tensor in."""

    cache_dtype = np.dtype(np.float16)

    def __init__(self, name: str, free: int) -> None:
        self.name, self._free = name, free

    def free_bytes(self) -> int:
        return self._free

    def matrix_bytes(self, ggml_type: GGMLType, n_rows: int, n_cols: int) -> int:
        return held.matrix_bytes(ggml_type, n_rows, n_cols)

    def table_bytes(self, ggml_type: GGMLType, n_rows: int, n_cols: int, *, is_tied: bool) -> int:
        return held.table_bytes(ggml_type, n_rows, n_cols, is_tied=is_tied)


class _Host(CpuOps):
    """A CPU with all the memory that it takes."""

    def free_bytes(self) -> int:
        return 1 << 62


def on_cards(file: GGUFFile, hp: HParams, cards: dict[str, int] | None = None) -> list[CardPlan]:
    """For each card of so many free bytes, by name; M40s where none are given."""
    return [_on_card(file, hp, _Card(*card)) for card in (cards or M40S).items()]


def _on_card(file: GGUFFile, hp: HParams, card: _Card) -> CardPlan:
    reckoner = Reckoner(card, _Host(), file, hp)
    choices = choices_of(hp, gpu_layers="auto", fit=True)
    contexts: dict[str, int | None] = dict.fromkeys(KV_TYPES)
    for kv_type in choices.kv_types:
        if plan := longest(reckoner, choices, hp.n_layers, kv_type):
            contexts[kv_type] = plan.max_seq_len
    best = fitting(reckoner, choices)
    assert best is not None, "a host that holds all of it"
    return CardPlan(card.name, card.free_bytes(), best, contexts)
