"""Products with experts on an imagined card, and which experts a router there chooses.

Nobody computes the router's logits, so its choice is assumed: an even one. The experts of a token
are different ones, and each expert gets as many tokens as any other, or one less.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m40llm.device.gpu.card import Card
from m40llm.device.gpu.experts import GpuExperts
from m40llm.kernels.planes import Planes
from m40llm.sm52.work import Work

Buffer = Any


def even_choice(n_slots: int, n_experts: int) -> NDArray[np.int32]:
    """The expert of each slot: one after another, over and over."""
    return (np.arange(n_slots) % n_experts).astype(np.int32)


class ImaginedExperts(GpuExperts):
    """Of the weights, which hold all experts, a launch reads those that are chosen.

    amend  takes what the last launch's arguments do not say of it
    """

    def __init__(self, card: Card, amend: Callable[..., None]) -> None:
        super().__init__(card)
        self._amend = amend

    def matmul(self, w: Planes, x: Buffer, ids: Buffer, *, out: Buffer) -> None:
        super().matmul(w, x, ids, out=out)
        self._note(w, x, ids, out, int(out.shape[1]))

    def swiglu(self, gate_up: Planes, x: Buffer, ids: Buffer, *, out: Buffer) -> None:
        super().swiglu(gate_up, x, ids, out=out)
        self._note(gate_up, x, ids, out, 2 * int(out.shape[1]))

    def _note(self, w: Planes, x: Buffer, ids: Buffer, out: Buffer, n_rows: int) -> None:
        """n_rows: of w that are an expert's."""
        n_slots, n_experts = int(ids.shape[0]), w.n_rows // n_rows
        n_read = min(n_slots, n_experts) * n_rows
        given = x.nbytes + ids.nbytes + out.nbytes
        work = Work(n_read * _row_bytes(w) + given, 2 * n_slots * n_rows * w.n_cols)
        operand = f"{w.type.name} {n_rows} x {w.n_cols}, {min(n_slots, n_experts)} of {n_experts}"
        self._amend(work=work, operand=operand)


def _row_bytes(w: Planes) -> int:
    planes = (w.quants, w.highs, w.scales)
    return sum(plane.nbytes // w.n_rows for plane in planes if plane is not None)
