"""What a model will take of each device's memory, reckoned before anything is loaded."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from m40llm.device.ops import Sizes
from m40llm.gguf import GGUFFile
from m40llm.model.arch import architecture_of
from m40llm.model.hparams import HParams
from m40llm.model.kv_cache import KVType, cache_bytes
from m40llm.model.part import Part, split
from m40llm.model.rope import rope_bytes
from m40llm.model.unpacked import Unpacked, unpacked_tensors
from m40llm.model.weights import weight_bytes
from m40llm.model.workspace import workspace_bytes

MAX_TOKENS = 512  # rows of one forward pass: a prompt is read in chunks of this many
MAX_LOGITS_BYTES = 64 << 20


@dataclass(frozen=True)
class Share:
    """What lies on one device: some of the model's layers; sizes in bytes."""

    device: str
    part: Part
    weights: int
    cache: int
    workspace: int
    free: int
    unpacked: tuple[Unpacked, ...] = ()  # part of `weights`: types that the device does not read

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.workspace


@dataclass(frozen=True)
class Plan:
    """Sizes of one loaded model: lengths in tokens, the rest in bytes.

    shares  of each device that has layers, in the order of the layers
    n_seqs  sequences that the cache holds, each of up to max_seq_len tokens
    """

    max_seq_len: int
    max_tokens: int
    max_logits: int
    kv_type: KVType
    shares: tuple[Share, ...]
    n_seqs: int = 1

    @property
    def weights(self) -> int:
        return sum(share.weights for share in self.shares)

    @property
    def cache(self) -> int:
        return sum(share.cache for share in self.shares)

    @property
    def workspace(self) -> int:
        return sum(share.workspace for share in self.shares)

    @property
    def total(self) -> int:
        return sum(share.total for share in self.shares)

    @property
    def placement(self) -> str:
        """The layers of each device, in words: "22 of 32 layers on cuda:0, 10 on cpu"."""
        first, *others = reversed(self.shares)
        told = f"{len(first.part.layers)} of {first.part.n_layers} layers on {first.device}"
        return ", ".join([told, *(f"{len(s.part.layers)} on {s.device}" for s in others)])

    @property
    def chosen(self) -> str:
        """What `fit` has chosen, and what it takes, in words."""
        free = ", ".join(f"{size(share.free)} free on {share.device}" for share in self.shares)
        return f"context of {self.max_seq_len:,} tokens, cache in {self.kv_type}: {self}; {free}"

    def __str__(self) -> str:
        return " and ".join(map(self._told, self.shares))

    def _told(self, share: Share) -> str:
        n = f"{len(share.part.layers)} layers, " if len(self.shares) > 1 else ""
        in_type = "" if self.kv_type == "f16" else f" in {self.kv_type}"
        each = f"{self.n_seqs} times {self.max_seq_len}" if self.n_seqs > 1 else self.max_seq_len
        where = f" on {share.device}" if len(self.shares) > 1 else ""
        return (
            f"{size(share.total)}{where} ({n}weights {size(share.weights)}, "
            f"cache {size(share.cache)} for {each} tokens{in_type}, "
            f"workspace {size(share.workspace)})"
        )


def size(n_bytes: int) -> str:
    """Bytes for people."""
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.1f} MB"


class Room(Sizes, Protocol):
    """What a plan needs to know of a device: `Ops` know it, and who imagines one."""

    name: str
    cache_dtype: np.dtype[Any]

    def free_bytes(self) -> int: ...


class Reckoner:
    """Plans of one model on a device, whose last layers are there and the others on `host`."""

    def __init__(self, ops: Room, host: Room, file: GGUFFile, hp: HParams, n_seqs: int = 1) -> None:
        self.ops, self.host, self.file, self.hp, self.n_seqs = ops, host, file, hp, n_seqs
        self._arch = architecture_of(file)
        self._free = {each.name: each.free_bytes() for each in (host, ops)}
        self._weights: dict[tuple[str, Part], tuple[int, tuple[Unpacked, ...]]] = {}

    def plan(self, n_on_device: int, max_seq_len: int, kv_type: KVType) -> Plan:
        """With so many layers on the device, and a context of so many tokens."""
        max_tokens = max(min(MAX_TOKENS, max_seq_len), self.n_seqs)
        most = min(128, max_tokens, MAX_LOGITS_BYTES // (4 * self.hp.vocab_size))
        max_logits = max(self.n_seqs, most)
        on_host, on_device = split(self.hp.n_layers, n_on_device)
        shares = tuple(
            self._share(
                *(ops, part, max_seq_len, kv_type),
                workspace_bytes(self.hp, max_tokens, max_logits if part.has_output else 0),
            )
            for ops, part in ((self.host, on_host), (self.ops, on_device))
            if part.layers
        )
        return Plan(max_seq_len, max_tokens, max_logits, kv_type, shares, self.n_seqs)

    def _share(
        self, ops: Room, part: Part, max_seq_len: int, kv_type: KVType, workspace: int
    ) -> Share:
        hp = self.hp
        ropes = len(set(self._arch.ropes(part.layers))) * rope_bytes(hp.rope, max_seq_len)
        if (ops.name, part) not in self._weights:
            found = weight_bytes(ops, self.file, part), unpacked_tensors(ops, self.file, part)
            self._weights[ops.name, part] = found
        weights, unpacked = self._weights[ops.name, part]
        cache_of_all = cache_bytes(hp, self.n_seqs, max_seq_len, ops.cache_dtype.itemsize, kv_type)
        return Share(
            device=ops.name,
            part=part,
            weights=weights,
            cache=cache_of_all // hp.n_layers * len(part.layers),
            workspace=workspace + ropes,
            free=self._free[ops.name],
            unpacked=unpacked,
        )
