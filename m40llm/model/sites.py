"""Sites: what a forward pass computes on its way, where it can be read or changed.

    embd                  [t, n_embd]               the embedding: the residual stream at first
    blk.N.resid_pre       [t, n_embd]               the residual stream before layer N
    blk.N.attn_norm       [t, n_embd]               what its attention reads
    blk.N.q               [t, n_heads, head_dim]    with bias, before norms of heads and RoPE
    blk.N.k, blk.N.v      [t, n_kv_heads, head_dim]
    blk.N.q_norm, .k_norm                           the same after their norms, where it has any
    blk.N.scores          [t, n_heads, p]           after scale, soft cap and mask (-inf)
    blk.N.pattern         [t, n_heads, p]           softmax of that
    blk.N.z               [t, n_heads, head_dim]    what each head has gathered: pattern times v
    blk.N.attn_out        [t, n_embd]               what attention adds to the residual stream
    blk.N.resid_mid       [t, n_embd]               the residual stream between the two
    blk.N.ffn_norm        [t, n_embd]               what the feed-forward network reads
    blk.N.gate, blk.N.up  [t, n_ff]
    blk.N.act             [t, n_ff]                 activation(gate) * up
    blk.N.router          [t, n_experts]            logits of the experts, in place of these three
    blk.N.mlp_out         [t, n_embd]               what the network adds to the residual stream
    blk.N.resid_post      [t, n_embd]               the residual stream behind the layer
    norm                  [t, n_embd]               the residual stream after the last norm
    logits                [t, vocab_size]

t counts the rows of a batch, p the positions up to the last of them. Elements of q and k stand in
the file's order, which for interleaved RoPE is pairs. Names after TransformerLens's, without
`hook_`; numbers of layers as GGUF has them.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from m40llm.device.ops import Buffer
from m40llm.model.arch import Architecture
from m40llm.model.batch import Batch
from m40llm.model.hparams import HParams


class Memory(Protocol):
    """Where a site's values are: a device's ops, or the host."""

    def read(self, buffer: Buffer) -> NDArray[Any]: ...

    def write(self, buffer: Buffer, values: NDArray[Any]) -> None: ...

    def empty(self, shape: tuple[int, ...], dtype: Any = ...) -> Buffer: ...

    def take_rows(self, x: Buffer, rows: Buffer, *, out: Buffer) -> None: ...


class Hooks(Protocol):
    """Who looks at a forward pass. A model has none unless it is told."""

    def begin(self, batch: Batch) -> None:
        """What follows is of this batch."""
        ...

    def wants(self, site: str) -> bool:
        """Whether `visit` shall be called: some sites cost more than to look at them."""
        ...

    def visit(
        self, site: str, memory: Memory, buffer: Buffer, rows: NDArray[np.int32] | None = None
    ) -> None:
        """The site's values, of these rows of the batch (None: all), may be read and overwritten
        until this returns; what follows is computed from what then lies there."""
        ...


class HostMemory:
    """Of NumPy arrays: of scores and patterns."""

    def read(self, buffer: NDArray[Any]) -> NDArray[Any]:
        return buffer.copy()

    def write(self, buffer: NDArray[Any], values: NDArray[Any]) -> None:
        buffer[...] = values

    def empty(self, shape: tuple[int, ...], dtype: Any = np.float32) -> NDArray[Any]:
        return np.empty(shape, dtype)

    def take_rows(self, x: NDArray[Any], rows: NDArray[Any], *, out: NDArray[Any]) -> None:
        out[...] = x[rows]


def sites_of(arch: Architecture, hp: HParams) -> Iterator[str]:
    """The names of a model's sites, in the order in which a forward pass comes to them."""
    yield "embd"
    of_layer = tuple(_of_layer(arch, hp))
    for layer in range(hp.n_layers):
        yield from (f"blk.{layer}.{name}" for name in of_layer)
    yield from ("norm", "logits")


def _of_layer(arch: Architecture, hp: HParams) -> Iterator[str]:
    yield "resid_pre"
    if arch.norms != "after":
        yield "attn_norm"
    yield from ("k", "v", "q")
    if arch.qk_norm != "none":
        yield from ("q_norm", "k_norm")
    yield from ("scores", "pattern", "z", "attn_out", "resid_mid")
    if arch.norms != "after":
        yield "ffn_norm"
    yield from ("router",) if hp.n_experts else ("up", "gate", "act")
    yield from ("mlp_out", "resid_post")
