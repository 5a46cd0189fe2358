"""What makes a model's tokens on its device, without the host: a decode program, or its own ops."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from m40llm.device.decoder import Decoder, ModelParts, OpsStep
from m40llm.device.ops import Buffer
from m40llm.model.program import decode_program, weights_by_name, why_not

if TYPE_CHECKING:
    from m40llm.model.transformer import Transformer
    from m40llm.model.workspace import Rows


def decoder_of(
    model: "Transformer", n_seqs: int, forward: Callable[["Rows"], None]
) -> Decoder | str:
    """The decoder of the cache's first n_seqs sequences, or why there is none.

    forward  rows whose token ids, sequences and positions are on the device -> the first rows of
             `workspace.logits`
    """
    reason = why_not(model.arch, model.hp, model.weights, model.kv.kv_type)
    found = reason or _of_program(model, n_seqs)
    if not isinstance(found, str):
        return found
    return _why_no_ops(model, n_seqs) or _of_ops(model, n_seqs, forward, found)


def _of_program(model: "Transformer", n_seqs: int) -> Decoder | str:
    hp, weights = model.hp, model.weights
    parts = ModelParts(
        weights=weights_by_name(weights),
        table=weights.token_embd,
        ropes=model.ropes,
        windows=model.windows,
        k=model.kv.k[:, :n_seqs],
        v=model.kv.v[:, :n_seqs],
        n_heads=hp.n_heads,
        n_embd=hp.n_embd,
        n_ff=hp.n_ff,
        rope_dim=hp.rope.rope_dim,
        vocab_size=hp.vocab_size,
        norm_eps=hp.norm_eps,
        scale=model.scale,
    )
    return model.ops.decoder(decode_program(model.arch, hp, weights), parts)


def _why_no_ops(model: "Transformer", n_rows: int) -> str:
    """Why a step of the ops, a row a sequence, needs the host; empty where it does not."""
    hp, ws = model.hp, model.workspace
    if n_rows > min(ws.max_tokens, ws.max_logits):
        return f"the workspace has no room for a row of each of {n_rows} sequences"
    if hp.n_experts and n_rows * hp.n_experts_used > hp.n_experts:
        return f"{n_rows} sequences choose more than the {hp.n_experts} experts that there are"
    return ""


def _of_ops(
    model: "Transformer", n_rows: int, forward: Callable[["Rows"], None], no_program: str
) -> Decoder | str:
    def step(token_ids: Buffer, seq: Buffer, pos: Buffer) -> None:
        rows = model.workspace.rows(int(token_ids.shape[0]))
        forward(replace(rows, token_ids=token_ids, seq=seq, pos=pos))

    return model.ops.ops_decoder(
        OpsStep(step, model.workspace.logits[:n_rows], model.kv.max_seq_len, no_program)
    )
