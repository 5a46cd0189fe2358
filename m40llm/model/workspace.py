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
    expert_rows: "ExpertRows | None"
    token_ids: Buffer  # [t]
    seq: Buffer  # [t]
    pos: Buffer  # [t]


@dataclass(frozen=True)
class ExpertRows:
    """What layers with experts need beside; the first n_tokens rows, or all that a token uses."""

    router: Buffer  # [t, n_experts]
    x: Buffer  # [t, n_embd]              rows of one expert
    out: Buffer  # [t, n_embd]            and what it makes of them
    rows: Buffer  # [t * n_experts_used]  int32
    shares: Buffer  # [t * n_experts_used]


def workspace_bytes(hp: HParams, max_tokens: int, max_logits: int) -> int:
    """Bytes of all buffers below."""
    per_token = 2 * hp.n_embd + 2 * hp.q_dim + 2 * hp.kv_dim + 2 * hp.n_ff + 3
    if hp.n_experts:
        per_token += hp.n_experts + 2 * hp.n_embd + 2 * hp.n_experts_used
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
        self._of_experts: dict[str, Buffer] = {}
        if hp.n_experts:
            n_shares = max_tokens * hp.n_experts_used
            self._of_experts = {
                "router": ops.empty((max_tokens, hp.n_experts)),
                "x": ops.empty((max_tokens, hp.n_embd)),
                "out": ops.empty((max_tokens, hp.n_embd)),
                "rows": ops.empty((n_shares,), "int32"),
                "shares": ops.empty((n_shares,)),
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
        return Rows(**wide, **per_head, **ints, expert_rows=self._expert_rows(n_tokens))

    def _expert_rows(self, n_tokens: int) -> ExpertRows | None:
        if not self._hp.n_experts:
            return None
        n_shares = n_tokens * self._hp.n_experts_used
        lengths = {"rows": n_shares, "shares": n_shares}
        return ExpertRows(
            **{name: b[: lengths.get(name, n_tokens)] for name, b in self._of_experts.items()}
        )
