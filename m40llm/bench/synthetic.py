"""A model of a real shape with drawn weights, on a card: what it computes is noise, but not less.

Layers share their values, not their memory: to draw and repack billions of weights would take
longer than to time them.
"""

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from gguf import GGMLQuantizationType as GGMLType
from numpy.typing import NDArray

from m40llm.bench.shapes import tensor_type
from m40llm.device.gpu.ops import GpuOps
from m40llm.gguf.blocks import FORMATS, dequantize
from m40llm.kernels.layouts import DENSE, LAYOUTS
from m40llm.kernels.planes import Planes, from_blocks
from m40llm.model.arch import ARCHITECTURES
from m40llm.model.hparams import HParams
from m40llm.model.transformer import Transformer
from m40llm.model.weights import LayerWeights, Weights
from m40llm.progress import Progress, silent

# Where a minimum follows the FP16 scale: its ratio to that which moves the mean of uniform quants
# to 0.
_MIN_RATIO = {
    GGMLType.Q4_1: -7.5,
    GGMLType.Q5_1: -15.5,
    GGMLType.Q2_K: 1.5,
    GGMLType.Q4_K: 7.5,
    GGMLType.Q5_K: 15.5,
}


# Numbers that are drawn: more are the same again. A prime, so that no two rows are equal.
N_DRAWN: Final = 2**22 - 3


def random_blocks(
    rng: np.random.Generator, type: GGMLType, n_rows: int, n_cols: int, std: float
) -> NDArray[np.uint8]:
    """uint8[n_rows * row_bytes]: quants any bytes, scales of either sign, of this spread."""
    n = n_rows * n_cols
    if type in DENSE:
        values = rng.standard_normal(min(n, N_DRAWN), np.float32) * np.float32(std)
        kept = values.astype(np.float16 if type == GGMLType.F16 else np.float32)
        return np.resize(kept, n).view(np.uint8)
    block = FORMATS[type]
    n_blocks = n // block.n_weights
    blocks = np.frombuffer(rng.bytes(n_blocks * block.n_bytes), np.uint8).copy()
    blocks = blocks.reshape(n_blocks, block.n_bytes)
    _set_scales(blocks[:4096], type, np.ones(min(n_blocks, 4096)))
    unit = float(dequantize(type, blocks[:4096]).std())
    signs = rng.choice(np.array([-1.0, 1.0]), n_blocks)
    _set_scales(blocks, type, signs * (std / unit))
    return blocks.reshape(-1)


def _set_scales(blocks: NDArray[np.uint8], type: GGMLType, scale: NDArray[np.float64]) -> None:
    if type == GGMLType.MXFP4:  # a power of two, above 0
        blocks[:, 0] = 128 + np.round(np.log2(np.abs(scale))).astype(int)
        return
    at = LAYOUTS[type].head.start
    blocks[:, at : at + 2] = scale.astype("<f2")[:, None].view(np.uint8)
    if type in _MIN_RATIO:
        minimum = scale * _MIN_RATIO[type]
        blocks[:, at + 2 : at + 4] = minimum.astype("<f2")[:, None].view(np.uint8)


class _Maker:
    """Matrices of a shape on a card; what has been drawn is kept on the host, by name and type."""

    def __init__(self, ops: GpuOps, hp: HParams, kind: str, seed: int) -> None:
        self._ops, self._hp, self._kind = ops, hp, kind
        self._rng = np.random.default_rng(seed)
        self._drawn: dict[Any, Planes] = {}

    def stack(
        self, layer: int, rows: Sequence[tuple[str, int]], n_cols: int
    ) -> tuple[tuple[Planes, ...], tuple[Planes, ...]]:
        """As Ops.stack: groups of one type, and each part."""
        types = [
            tensor_type(self._kind, name, layer, self._hp.n_layers, n_cols) for name, _ in rows
        ]
        groups: list[Planes] = []
        parts: list[Planes] = []
        first = 0
        while first < len(rows):
            end = first + 1
            while end < len(rows) and types[end] == types[first]:
                end += 1
            group = rows[first:end]
            n_rows = sum(n for _, n in group)
            whole = self._matrix("+".join(name for name, _ in group), types[first], n_rows, n_cols)
            groups.append(whole)
            at = 0
            for _, n in group:
                parts.append(whole[at : at + n])
                at += n
            first = end
        return tuple(groups), tuple(parts)

    def matrix(self, layer: int, name: str, n_rows: int, n_cols: int, gain: float = 1) -> Planes:
        type = tensor_type(self._kind, name, layer, self._hp.n_layers, n_cols)
        return self._matrix(name, type, n_rows, n_cols, gain)

    def _matrix(
        self, name: str, type: GGMLType, n_rows: int, n_cols: int, gain: float = 1
    ) -> Planes:
        key = name, type
        if key not in self._drawn:
            data = random_blocks(self._rng, type, n_rows, n_cols, gain / math.sqrt(n_cols))
            self._drawn[key] = from_blocks(type, n_rows, n_cols, data)
        return self._ops.upload(self._drawn[key])

    def vector(self, n: int) -> Any:
        values = 1 + 0.1 * self._rng.standard_normal(n, np.float32)
        return self._ops.card.upload(values.astype(np.float32))

    def table(self, n_rows: int, n_cols: int) -> Any:
        data = random_blocks(self._rng, GGMLType.F16, n_rows, n_cols, 1.0)
        return self._ops.table(GGMLType.F16, n_rows, n_cols, data)


class _HollowMaker(_Maker):
    """Of nothing is more made than its shape: for a card that is imagined."""

    def _matrix(
        self, name: str, type: GGMLType, n_rows: int, n_cols: int, gain: float = 1
    ) -> Planes:
        return self._ops.matrix(type, n_rows, n_cols, np.empty(0, np.uint8))

    def vector(self, n: int) -> Any:
        return self._ops.empty((n,))

    def table(self, n_rows: int, n_cols: int) -> Any:
        return self._ops.table(GGMLType.F16, n_rows, n_cols, np.empty(0, np.uint8))


def hollow_model(
    ops: GpuOps, hp: HParams, kind: str, *, n_seqs: int, max_seq_len: int, max_tokens: int
) -> Transformer:
    """As `synthetic_model`, over the ops of an imagined card: nothing is drawn."""
    weights = _weights(_HollowMaker(ops, hp, kind, 0), hp, silent)
    return _transformer(ops, hp, weights, n_seqs, max_seq_len, max_tokens, n_seqs)


def synthetic_model(
    ops: GpuOps,
    hp: HParams,
    kind: str,
    *,
    n_seqs: int,
    max_seq_len: int,
    max_tokens: int | None = None,
    max_logits: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Transformer:
    """A transformer of this shape, its cache full of drawn keys and values."""
    tell = progress or silent
    weights = _weights(_Maker(ops, hp, kind, seed), hp, tell)
    most = max_tokens or n_seqs, max_logits or n_seqs
    model = _transformer(ops, hp, weights, n_seqs, max_seq_len, *most)
    fill_cache(model, np.random.default_rng(seed))
    tell("making weights", 1.0)
    return model


def _weights(make: _Maker, hp: HParams, tell: Progress) -> Weights:
    layers = []
    for layer in range(hp.n_layers):
        layers.append(_layer(make, hp, layer))
        tell("making weights", (layer + 1) / (hp.n_layers + 1))
    return Weights(
        token_embd=make.table(hp.vocab_size, hp.n_embd),
        layers=tuple(layers),
        output_norm=make.vector(hp.n_embd),
        output=make.matrix(0, "output", hp.vocab_size, hp.n_embd),
    )


def _transformer(
    ops: GpuOps,
    hp: HParams,
    weights: Weights,
    n_seqs: int,
    max_seq_len: int,
    max_tokens: int,
    max_logits: int,
) -> Transformer:
    return Transformer(
        *(ops, ARCHITECTURES[hp.arch], hp, weights),
        n_seqs=n_seqs,
        max_seq_len=max_seq_len,
        max_tokens=max_tokens,
        max_logits=max_logits,
    )


def _layer(make: _Maker, hp: HParams, layer: int) -> LayerWeights:
    rows = (("attn_q", hp.q_dim), ("attn_k", hp.kv_dim), ("attn_v", hp.kv_dim))
    attn_qkv, (attn_q, attn_k, attn_v) = make.stack(layer, rows, hp.n_embd)
    rows_ff = (("ffn_gate", hp.n_ff), ("ffn_up", hp.n_ff))
    ffn_gate_up, (ffn_gate, ffn_up) = make.stack(layer, rows_ff, hp.n_embd)
    return LayerWeights(
        attn_norm=make.vector(hp.n_embd),
        attn_q=attn_q,
        attn_k=attn_k,
        attn_v=attn_v,
        attn_output=make.matrix(layer, "attn_output", hp.n_embd, hp.q_dim, 0.3),
        ffn_norm=make.vector(hp.n_embd),
        ffn_gate=ffn_gate,
        ffn_up=ffn_up,
        ffn_down=make.matrix(layer, "ffn_down", hp.n_embd, hp.n_ff, 0.3),
        attn_qkv=attn_qkv,
        ffn_gate_up=ffn_gate_up,
        **_norms_of_heads(make, hp),
    )


def _norms_of_heads(make: _Maker, hp: HParams) -> dict[str, Any]:
    """Of Q and K, where the architecture has them."""
    if ARCHITECTURES[hp.arch].qk_norm == "none":
        return {}
    return {f"attn_{part}_norm": make.vector(hp.head_dim) for part in "qk"}


def fill_cache(model: Transformer, rng: np.random.Generator) -> None:
    """Keys and values, layer by layer, from a few drawn ones."""
    kv, shape = model.kv, model.kv.k.shape[1:]
    drawn = [(0.5 * rng.standard_normal(shape, np.float32)).astype(np.float16) for _ in range(2)]
    for layer in range(model.hp.n_layers):
        model.ops.write(kv.k[layer], drawn[layer % 2])
        model.ops.write(kv.v[layer], drawn[(layer + 1) % 2])
