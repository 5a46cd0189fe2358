"""A decode program with buffers and weights in place of names, and what a kernel for it needs."""

from collections.abc import Iterator, Sequence

import numpy as np

from m40llm.device.decoder import ModelParts
from m40llm.device.gpu.bound import Buffer, Other, Product, in_parts
from m40llm.device.gpu.card import Card
from m40llm.device.gpu.decode_state import new_exchange
from m40llm.device.instructions import (
    AddNormed,
    Attend,
    Choose,
    Embed,
    Instruction,
    Project,
)
from m40llm.device.ops import RopeTable
from m40llm.kernels.program import words
from m40llm.kernels.program.form import Form, QkNorm


def form_of(program: Sequence[Instruction], parts: ModelParts) -> Form:
    _, n_seqs, n_kv_heads, _, head_dim = parts.k.shape
    types = (parts.weights[one.weight].type for one in program if isinstance(one, Project))
    norms = {one.q_norm for one in program if isinstance(one, Attend) and one.q_norm}
    sizes = {parts.weights[norm].size for norm in norms}
    qk_norm: QkNorm = "none" if not sizes else "head" if sizes == {head_dim} else "row"
    is_gelu = any(isinstance(one, Project) and one.effect == "geglu" for one in program)
    return Form(
        *(tuple(dict.fromkeys(types)), parts.table.type, n_seqs, parts.n_heads, n_kv_heads),
        *(head_dim, parts.rope_dim, parts.ropes[0].layout),
        qk_norm=qk_norm,
        has_factors=any(
            one.factor != 1 for one in program if isinstance(one, Embed | Project | AddNormed)
        ),
        activation="gelu" if is_gelu else "silu",
        has_post_norms=any(isinstance(one, AddNormed) for one in program),
    )


def bind(card: Card, program: Sequence[Instruction], parts: ModelParts) -> list[Product | Other]:
    """The instructions; they hold all that they point to."""
    return list(_Binder(card, parts).instructions(program))


class _Binder:
    """A program's buffers, and the tables of angles that its layers share."""

    def __init__(self, card: Card, parts: ModelParts) -> None:
        self._card, self._parts = card, parts
        _, self._n_seqs, n_kv_heads, self._max_seq_len, head_dim = parts.k.shape
        q_dim, kv_dim = parts.n_heads * head_dim, n_kv_heads * head_dim
        widths = {"x": parts.n_embd, "y": parts.n_embd, "h": parts.n_ff}
        widths |= {"qkv": q_dim + 2 * kv_dim, "attn": q_dim}
        self._buffers = {
            name: new_exchange(card, self._n_seqs, width) for name, width in widths.items()
        }
        self._tables: dict[int, Buffer] = {}  # by the identity of a RopeTable

    def instructions(self, program: Sequence[Instruction]) -> Iterator[Product | Other]:
        b = self._buffers
        for one in program:
            if isinstance(one, Embed):
                yield Other(words.EMBED, out=b[one.out], factor=one.factor)
            elif isinstance(one, Choose):
                yield Other(words.CHOOSE)
            elif isinstance(one, Attend):
                yield self._attend(one)
            elif isinstance(one, AddNormed):
                norm, factor = self._weights(one.norm), one.factor
                yield Other(words.ADD_NORMED, b[one.x], b[one.out], norm=norm, factor=factor)
            else:
                yield from in_parts(self._product(one), self._n_seqs)

    def _attend(self, one: Attend) -> Other:
        parts, b = self._parts, self._buffers
        return Other(
            *(words.ATTEND, b[one.x], b[one.out], parts.k[one.layer], parts.v[one.layer]),
            *(self._weights(one.q_norm), self._weights(one.k_norm)),
            angles=self._angles(one.layer) if one.q_norm else None,
            window=parts.windows[one.layer],
        )

    def _product(self, one: Project) -> Product:
        out = self._buffers.get(one.out)  # logits have a place of their own
        return Product(
            *(one.effect, self._parts.weights[one.weight], self._buffers[one.x], out),
            *(self._weights(one.norm), self._bias(one), one.first_row),
            angles=self._angles(one.layer) if one.effect == "rotate" else None,
            factor=one.factor,
        )

    def _bias(self, one: Project) -> Buffer | None:
        """A kernel multiplies a product, and then adds the bias."""
        bias = self._weights(one.bias)
        if bias is None or one.factor == 1:
            return bias
        values = np.asarray(self._card.read(bias), np.float64) * one.factor
        return self._card.upload(values.astype(np.float32))

    def _weights(self, name: str | None) -> Buffer | None:
        return self._parts.weights[name] if name else None

    def _angles(self, layer: int) -> Buffer:
        rope = self._parts.ropes[layer]
        if id(rope) not in self._tables:
            self._tables[id(rope)] = angles_on(self._card, rope, self._max_seq_len)
        return self._tables[id(rope)]


def angles_on(card: Card, rope: RopeTable, max_seq_len: int) -> Buffer:
    """float32[max_seq_len, rope_dim / 2, 2] in a row: cos and sin of each angle side by side, with
    room for the last one to be read as the first of two."""
    cos, sin = (np.asarray(card.read(table[:max_seq_len])) for table in (rope.cos, rope.sin))
    both = np.stack([cos, sin], -1).astype(np.float32).reshape(-1)
    return card.upload(np.concatenate([both, np.zeros(2, np.float32)]))
