"""The KV cache of an LLM, to be looked into, changed, cut short, put aside and taken up again."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from m40llm.engine.engine import Engine
from m40llm.engine.scalars import is_whole
from m40llm.errors import RequestError
from m40llm.research.selection import numbers

KeysValues = tuple[NDArray[Any], NDArray[Any]]


@dataclass(frozen=True)
class Snapshot:
    """A cache as it was: its tokens, and (keys, values) of each layer, as `Cache.read` has them."""

    ids: tuple[int, ...]
    layers: tuple[KeysValues, ...]


class Cache:
    """What is cached of the text that was read last: keys after RoPE, and values.

    `llm.steps` goes on from what its text shares with `ids`, so that a changed cache shows in what
    it says next; `llm.generate` and `llm.logits` begin anew.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine, self._kv = engine, engine.model.kv

    @property
    def ids(self) -> list[int]:
        """The tokens that are cached."""
        return self._engine.cached_ids

    def read(self, layer: int) -> KeysValues:
        """(K, V) of a layer: [n_kv_heads, n_tokens, head_dim], in the cache's own type, float32 of
        one in q8_0."""
        return self._kv.prefix(self._layer(layer), 0, len(self.ids))

    def write(self, layer: int, k: ArrayLike, v: ArrayLike, at: int | slice = slice(None)) -> None:
        """Keys and values of a layer at one position or several: [n_kv_heads, (n,) head_dim]."""
        where = self._where(at)
        pair = self.read(layer)
        for cache, values in zip(pair, (k, v), strict=True):
            try:
                cache[:, where] = numbers(values)
            except ValueError as error:
                raise RequestError(f"cache.write: {error}") from None
        self._kv.write(self._layer(layer), 0, *pair)

    def trim(self, n_tokens: int) -> None:
        """Forgets what lies behind the first so many tokens."""
        if not is_whole(n_tokens) or not 0 <= n_tokens <= len(self.ids):
            raise RequestError(f"cache.trim: expected 0 to {len(self.ids)}, got {n_tokens!r}")
        self._engine.adopt(self.ids[:n_tokens])

    def fork(self) -> Snapshot:
        """A copy of all that is cached, on the host."""
        layers = range(self._engine.model.hp.n_layers)
        return Snapshot(tuple(self.ids), tuple(self.read(layer) for layer in layers))

    def restore(self, snapshot: Snapshot) -> None:
        """The cache as it was when it was forked. RequestError for one of another shape."""
        self._check(snapshot)
        for layer, pair in enumerate(snapshot.layers):
            self._kv.write(layer, 0, *pair)
        self._engine.adopt(list(snapshot.ids))

    def _where(self, at: int | slice) -> Any:
        n_tokens = len(self.ids)
        try:
            return np.arange(n_tokens)[at]
        except (IndexError, TypeError, ValueError):
            raise RequestError(
                f"cache.write: expected a position, 0 to {n_tokens - 1}, or a slice, got {at!r}"
            ) from None

    def _check(self, snapshot: Snapshot) -> None:
        if not isinstance(snapshot, Snapshot):
            raise RequestError(f"cache.restore: expected what fork has returned, got {snapshot!r}")
        n_tokens, n_layers = len(snapshot.ids), self._engine.model.hp.n_layers
        n_heads, _, head_dim = self._kv.prefix(0, 0, 0)[0].shape
        shapes = [array.shape for pair in snapshot.layers for array in pair]
        is_ours = shapes == 2 * n_layers * [(n_heads, n_tokens, head_dim)]
        if not is_ours or n_tokens > self._engine.max_seq_len:
            theirs = sorted({str(list(shape)) for shape in shapes})
            raise RequestError(
                f"cache.restore: expected {n_layers} layers of [{n_heads}, n, {head_dim}], n up to "
                f"{self._engine.max_seq_len}, got {len(snapshot.layers)} of {', '.join(theirs)}"
            )

    def _layer(self, layer: int) -> int:
        n_layers = self._engine.model.hp.n_layers
        if not is_whole(layer) or not 0 <= layer < n_layers:
            raise RequestError(f"cache: expected layer 0 to {n_layers - 1}, got {layer!r}")
        return layer
