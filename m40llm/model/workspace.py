"""Activations of a forward pass: allocated once for the largest batch, then only sliced."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from m40llm.device.ops import Buffer, Ops
from m40llm.model.hparams import HParams

_CUTS_KEPT: Final = 8


@dataclass(frozen=True)
class Rows:
    """The workspace's first n_tokens rows. All float32 but the int32 of the last line."""

    x: Buffer  # [t, n_embd]            the residual stream
    x_norm: Buffer  # [t, n_embd]
    q: Buffer  # [t, q_dim]
    k: Buffer  # [t, kv_dim]
    v: Buffer  # [t, kv_dim]
    attn: Buffer  # [t, q_dim]
    q_heads: Buffer  # [t, n_heads, head_dim]       q again
    k_heads: Buffer  # [t, n_kv_heads, head_dim]    k again
    v_heads: Buffer  # [t, n_kv_heads, head_dim]    v again
    attn_heads: Buffer  # [t, n_heads, head_dim]    attn again
    gate: Buffer  # [t, n_ff]
    up: Buffer  # [t, n_ff]
    expert_rows: "ExpertRows | None"
    token_ids: Buffer  # [t]
    seq: Buffer  # [t]
    pos: Buffer  # [t]


@dataclass(frozen=True)
class ExpertRows:
    """What layers with experts need beside, of n_tokens rows with n_experts_used slots each."""

    router: Buffer  # [t, n_experts]
    ids: Buffer  # [slots]            int32
    shares: Buffer  # [slots]
    # Where each slot is multiplied by itself; there are no more of these than experts.
    gate: Buffer  # [slots, n_ff]
    up: Buffer  # [slots, n_ff]
    down: Buffer  # [slots, n_embd]
    # Where each expert gets all its rows.
    rows: Buffer  # [slots]           int32
    x: Buffer  # [t, n_embd]          rows of one expert
    out: Buffer  # [t, n_embd]        and what it makes of them


def workspace_bytes(hp: HParams, max_tokens: int, max_logits: int) -> int:
    """Bytes of all buffers below."""
    per_token = 2 * hp.n_embd + 2 * hp.q_dim + 2 * hp.kv_dim + 2 * hp.n_ff + 3
    of_experts = sum(math.prod(shape) for shape in _expert_shapes(hp, max_tokens).values())
    per_logit = hp.n_embd + hp.vocab_size + 1
    return 4 * (max_tokens * per_token + of_experts + max_logits * per_logit)


def _expert_shapes(hp: HParams, max_tokens: int) -> dict[str, tuple[int, ...]]:
    """Of the buffers of ExpertRows, for the largest batch."""
    if not hp.n_experts:
        return {}
    n_slots = max_tokens * hp.n_experts_used
    n_single = min(n_slots, hp.n_experts)  # slots that are multiplied each by itself
    return {
        "router": (max_tokens, hp.n_experts),
        "ids": (n_slots,),
        "shares": (n_slots,),
        "gate": (n_single, hp.n_ff),
        "up": (n_single, hp.n_ff),
        "down": (n_single, hp.n_embd),
        "rows": (n_slots,),
        "x": (max_tokens, hp.n_embd),
        "out": (max_tokens, hp.n_embd),
    }


class Workspace:
    """Buffers for up to `max_tokens` rows, `max_logits` of them with logits."""

    def __init__(self, ops: Ops, hp: HParams, max_tokens: int, max_logits: int) -> None:
        self.max_tokens = max_tokens
        self.max_logits = max_logits
        self._hp = hp
        widths = {
            "x": hp.n_embd,
            "x_norm": hp.n_embd,
            "q": hp.q_dim,
            "k": hp.kv_dim,
            "v": hp.kv_dim,
            "attn": hp.q_dim,
            "gate": hp.n_ff,
            "up": hp.n_ff,
        }
        self._wide = {name: ops.empty((max_tokens, width)) for name, width in widths.items()}
        self._ints = {
            name: ops.empty((max_tokens,), "int32") for name in ("token_ids", "seq", "pos")
        }
        self._of_experts = {
            name: ops.empty(shape, "int32" if name in ("ids", "rows") else np.float32)
            for name, shape in _expert_shapes(hp, max_tokens).items()
        }
        self.logit_rows = ops.empty((max_logits,), "int32")
        self.x_last = ops.empty((max_logits, hp.n_embd))  # the rows whose logits are wanted
        self.logits = ops.empty((max_logits, hp.vocab_size))
        self._cut: dict[int, Rows] = {}

    def rows(self, n_tokens: int) -> Rows:
        """The first so many rows of all buffers; decode asks for the same few every step."""
        if n_tokens not in self._cut:
            if len(self._cut) == _CUTS_KEPT:
                self._cut.clear()
            self._cut[n_tokens] = self._rows(n_tokens)
        return self._cut[n_tokens]

    def _rows(self, n_tokens: int) -> Rows:
        hp = self._hp
        wide = {name: buffer[:n_tokens] for name, buffer in self._wide.items()}
        ints = {name: buffer[:n_tokens] for name, buffer in self._ints.items()}
        per_head = {
            "q_heads": wide["q"].reshape(n_tokens, hp.n_heads, hp.head_dim),
            "k_heads": wide["k"].reshape(n_tokens, hp.n_kv_heads, hp.head_dim),
            "v_heads": wide["v"].reshape(n_tokens, hp.n_kv_heads, hp.head_dim),
            "attn_heads": wide["attn"].reshape(n_tokens, hp.n_heads, hp.head_dim),
        }
        return Rows(**wide, **per_head, **ints, expert_rows=self._expert_rows(n_tokens))

    def _expert_rows(self, n_tokens: int) -> ExpertRows | None:
        if not self._hp.n_experts:
            return None
        n_slots, of_tokens = n_tokens * self._hp.n_experts_used, ("router", "x", "out")
        return ExpertRows(
            **{
                name: buffer[: n_tokens if name in of_tokens else n_slots]
                for name, buffer in self._of_experts.items()
            }
        )
