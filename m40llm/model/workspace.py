"""Activations of a forward pass: allocated once for the largest batch, then only sliced."""

from dataclasses import dataclass
from functools import lru_cache

from m40llm.device.ops import Buffer, Ops
from m40llm.model.hparams import HParams


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
    token_ids: Buffer  # [t]
    seq: Buffer  # [t]
    pos: Buffer  # [t]


def workspace_bytes(hp: HParams, max_tokens: int, max_logits: int) -> int:
    """Bytes of all buffers below."""
    per_token = 2 * hp.n_embd + 2 * hp.q_dim + 2 * hp.kv_dim + 2 * hp.n_ff + 3
    return 4 * (max_tokens * per_token + max_logits * (hp.n_embd + hp.vocab_size + 1))


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
        self.logit_rows = ops.empty((max_logits,), "int32")
        self.x_last = ops.empty((max_logits, hp.n_embd))  # the rows whose logits are wanted
        self.logits = ops.empty((max_logits, hp.vocab_size))
        self.rows = lru_cache(maxsize=8)(self._rows)  # decode asks for the same few every step

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
        return Rows(**wide, **per_head, **ints)
