"""The KV cache: keys (after RoPE) and values of every token so far, one layout for all devices.

k, v  float16 (float32 on cpu)[n_layers, n_seqs, n_kv_heads, max_seq_len, head_dim], C order
offset(layer, seq, head, pos, d) =
    ((((layer * n_seqs + seq) * n_kv_heads + head) * max_seq_len + pos) * head_dim + d

In q8_0 each is two arrays of this layout: quants int8[..., head_dim] and, a block of 32 elements
each, scales float16[..., head_dim / 32]; element d is quants[..., d] * scales[..., d / 32].
"""

from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from m40llm.device.ops import Buffer, Cache, Ops, Q8Cache
from m40llm.errors import RequestError
from m40llm.model.hparams import HParams

KVType = Literal["f16", "q8_0"]
KV_TYPES: Final[tuple[KVType, ...]] = get_args(KVType)
_BLOCK: Final = 32  # elements of a Q8_0 block
_BLOCK_BYTES: Final = 34  # its quants and its scale


def checked_kv_type(name: object) -> KVType:
    """RequestError for what is none."""
    for kv_type in KV_TYPES:
        if kv_type == name:
            return kv_type
    raise RequestError(f"kv_type: expected {', '.join(KV_TYPES)}, got {name!r}")


def check_heads(hp: HParams, kv_type: KVType) -> None:
    """RequestError where a head's vector is no whole number of the type's blocks."""
    if kv_type == "q8_0" and hp.head_dim % _BLOCK:
        raise RequestError(
            f"kv_type: expected 'f16', got 'q8_0', whose blocks are {_BLOCK} elements of a head; "
            f"this model's head_dim is {hp.head_dim}, which is no multiple of that"
        )


def cache_bytes(
    hp: HParams, n_seqs: int, max_seq_len: int, itemsize: int, kv_type: KVType = "f16"
) -> int:
    """Bytes of K and V together; `itemsize`, of f16, is what the device holds an element in: 2 on a
    card, 4 on cpu."""
    n_elements = 2 * hp.n_layers * n_seqs * hp.kv_dim * max_seq_len
    return n_elements // _BLOCK * _BLOCK_BYTES if kv_type == "q8_0" else n_elements * itemsize


class KVCache:
    """Cache of `n_seqs` sequences of up to `max_seq_len` tokens; k and v are device.ops.Cache.

    What lies beyond `seq_lens[seq]` belongs to nobody: rolling a sequence back is setting its
    length, and nothing needs to be cleared. RequestError for a kv_type that cannot hold the heads.
    """

    def __init__(
        self,
        ops: Ops,
        hp: HParams,
        n_seqs: int,
        max_seq_len: int,
        kv_type: KVType = "f16",
        n_layers: int | None = None,
    ) -> None:
        check_heads(hp, kv_type)
        self._ops = ops
        self.kv_type = kv_type
        n_layers = hp.n_layers if n_layers is None else n_layers
        shape = (n_layers, n_seqs, hp.n_kv_heads, max_seq_len, hp.head_dim)
        self.k, self.v = (_empty(ops, shape, kv_type) for _ in range(2))
        self.n_seqs = n_seqs
        self.max_seq_len = max_seq_len
        self.seq_lens = np.zeros(n_seqs, np.int32)

    def read(self, layer: int, seq: int, pos: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """One token's (K, V), each [n_kv_heads, head_dim], float32 of q8_0 and else as it lies
        there. RequestError beyond what is cached."""
        if not (0 <= layer < self.k.shape[0] and 0 <= seq < self.n_seqs):
            raise RequestError(f"kv.read: no layer {layer} of sequence {seq}")
        if not 0 <= pos < self.seq_lens[seq]:
            raise RequestError(f"kv.read: pos {pos}: the cache holds {self.seq_lens[seq]} tokens")
        return self._read(self.k[layer, seq], pos), self._read(self.v[layer, seq], pos)

    def prefix(self, layer: int, seq: int, n: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """(K, V) of the first n positions, written or not, each [n_kv_heads, n, head_dim]."""
        at = slice(n)
        return self._read(self.k[layer, seq], at), self._read(self.v[layer, seq], at)

    def _read(self, cache: Cache, at: int | slice) -> NDArray[Any]:
        if not isinstance(cache, Q8Cache):
            return self._heads(cache, at)
        quants, scales = self._heads(cache.quants, at), self._heads(cache.scales, at)
        return quants * np.repeat(scales.astype(np.float32), _BLOCK, axis=-1)

    def _heads(self, buffer: Buffer, at: int | slice) -> NDArray[Any]:
        """Head by head: a strided read would copy all that lies between the heads, too."""
        return np.stack([self._ops.read(buffer[head, at]) for head in range(buffer.shape[0])])

    def write(self, layer: int, seq: int, k: NDArray[Any], v: NDArray[Any]) -> None:
        """(K, V) of the first n positions, as `prefix` has them. RequestError of q8_0."""
        if self.kv_type != "f16":
            raise RequestError(f"kv.write: expected a cache in f16, this one is in {self.kv_type}")
        for cache, values in ((self.k, k), (self.v, v)):
            rounded = values.astype(self._ops.cache_dtype)
            for head, rows in enumerate(rounded):
                self._ops.write(cache[layer, seq, head, : len(rows)], np.ascontiguousarray(rows))

    def copy_prefix(self, source: int, seq: int, seq_len: int) -> None:
        """Sequence `seq` becomes the first `seq_len` tokens of another."""
        for cache in (self.k, self.v):
            of, to = (_parts(cache[:, each, :, :seq_len]) for each in (source, seq))
            for part, out in zip(of, to, strict=True):
                self._ops.copy(part, out=out)
        self.seq_lens[seq] = seq_len

    def truncate(self, seq: int, seq_len: int) -> None:
        """Forget the tokens of a sequence from position `seq_len` on."""
        self.seq_lens[seq] = min(self.seq_lens[seq], seq_len)


def _empty(ops: Ops, shape: tuple[int, ...], kv_type: KVType) -> Cache:
    if kv_type == "f16":
        return ops.empty(shape, ops.cache_dtype)
    scales = (*shape[:-1], shape[-1] // _BLOCK)
    return Q8Cache(ops.empty(shape, np.int8), ops.empty(scales, np.float16))


def _parts(cache: Cache) -> tuple[Buffer, ...]:
    return (cache.quants, cache.scales) if isinstance(cache, Q8Cache) else (cache,)
