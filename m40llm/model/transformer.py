"""The decoder-only transformer, written once over `Ops`: one op a line, its shape at the right."""

from dataclasses import replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from m40llm.device.decoder import Decoder, ModelParts, OpsStep
from m40llm.device.ops import Buffer, Ops, RopeTable
from m40llm.errors import KernelContractError
from m40llm.model.arch import Architecture
from m40llm.model.batch import Batch
from m40llm.model.experts import add_experts
from m40llm.model.hparams import HParams
from m40llm.model.kv_cache import KVCache, KVType
from m40llm.model.lora import Adapter
from m40llm.model.part import Part
from m40llm.model.program import decode_program, weights_by_name, why_not
from m40llm.model.rope import rope_table, still_table
from m40llm.model.rope_params import RopeParams
from m40llm.model.weights import LayerWeights, Weights
from m40llm.model.workspace import Rows, Workspace


class Transformer:
    """A model on a device: weights, cache and workspace; `forward` and `hidden` run it.

    Or a part of one, a stage of model/staged.py: `layers` takes rows through it. Its layers are
    counted from 0 on here, whichever of the model's they are.
    """

    def __init__(
        self,
        ops: Ops,
        arch: Architecture,
        hp: HParams,
        weights: Weights,
        *,
        n_seqs: int,
        max_seq_len: int,
        max_tokens: int,
        max_logits: int,
        freq_factors: NDArray[np.float32] | None = None,
        kv_type: KVType = "f16",
        part: Part | None = None,
    ) -> None:
        self.ops, self.arch, self.hp, self.weights = ops, arch, hp, weights
        self.part = part or Part.whole(hp.n_layers)
        self.adapter: Adapter | None = None  # of the rows to come; what is cached stays as it is
        self.kv = KVCache(ops, hp, n_seqs, max_seq_len, kv_type, len(self.part.layers))
        self.workspace = Workspace(ops, hp, max_tokens, max_logits)
        self._ropes = self._rope_tables(max_seq_len, freq_factors)
        self._windows = [arch.window_of(layer, hp) for layer in self.part.layers]
        self._scale = arch.score_scale(hp)
        self._attn_softcap, self._logit_softcap = arch.softcaps(hp)
        self._embedding_factor = arch.embedding_factor(hp)

    def _rope_tables(
        self, max_seq_len: int, freq_factors: NDArray[np.float32] | None
    ) -> list[RopeTable]:
        """Each layer's; most have the same one."""
        ops, arch, rope, layout = self.ops, self.arch, self.hp.rope, self.arch.rope_layout
        local = RopeParams(rope.rope_dim, arch.local_theta or rope.theta)
        make = {
            "all": lambda: rope_table(ops, rope, layout, max_seq_len, freq_factors),
            "none": lambda: still_table(ops, rope, layout, max_seq_len),
            "local": lambda: rope_table(ops, local, layout, max_seq_len),
        }
        of_layers = arch.ropes(self.part.layers)
        made = {kind: make[kind]() for kind in set(of_layers)}
        return [made[kind] for kind in of_layers]

    @cached_property
    def decoder(self) -> Decoder | str:
        """What decodes on the device by itself, made at the first call; or why nothing does."""
        reason = why_not(self.arch, self.hp, self.weights, self.kv.kv_type)
        found = reason or self._program_decoder()
        if not isinstance(found, str):
            return found
        if reason := self._why_no_ops():
            return reason
        n_rows = self.kv.n_seqs
        step = OpsStep(self._decode_rows, self.workspace.logits[:n_rows], self.kv.max_seq_len)
        return self.ops.ops_decoder(step)

    def _why_no_ops(self) -> str:
        """Why a step of the ops, a row a sequence, needs the host; empty where it does not."""
        n_rows, hp, ws = self.kv.n_seqs, self.hp, self.workspace
        if n_rows > min(ws.max_tokens, ws.max_logits):
            return f"the workspace has no room for a row of each of {n_rows} sequences"
        if hp.n_experts and n_rows * hp.n_experts_used > hp.n_experts:
            return f"{n_rows} sequences choose more than the {hp.n_experts} experts that there are"
        return ""

    def _program_decoder(self) -> Decoder | str:
        hp = self.hp
        parts = ModelParts(
            weights=weights_by_name(self.weights),
            table=self.weights.token_embd,
            ropes=self._ropes,
            windows=self._windows,
            k=self.kv.k,
            v=self.kv.v,
            n_heads=hp.n_heads,
            n_embd=hp.n_embd,
            n_ff=hp.n_ff,
            rope_dim=hp.rope.rope_dim,
            vocab_size=hp.vocab_size,
            norm_eps=hp.norm_eps,
            scale=self._scale,
        )
        return self.ops.decoder(decode_program(self.arch, hp, self.weights), parts)

    def _decode_rows(self, token_ids: Buffer, seq: Buffer, pos: Buffer) -> None:
        """A row of each sequence through the model, to the first rows of `workspace.logits`: all
        that it needs is on the device. See OpsStep."""
        n_rows = int(token_ids.shape[0])
        ws = replace(self.workspace.rows(n_rows), token_ids=token_ids, seq=seq, pos=pos)
        self._embed(ws)
        self._blocks(ws, single_rows=True)
        self._logits(self.normed(ws), self.workspace.logits[:n_rows])

    def ops_of(self, name: str) -> Ops:
        """Whose device a matrix is on: "blk.0.attn_q", "output"."""
        return self.ops

    def recover(self) -> None:
        """Makes good what a failed op may have left half-done."""
        self.ops.recover()
        decoder = self.__dict__.get("decoder")  # none is made for it
        if decoder is not None and not isinstance(decoder, str):
            decoder.recover()

    def forward(self, batch: Batch) -> Buffer:
        """Logits of the batch's `logit_rows`: float32[n_logits, vocab_size], on the device.

        Each row attends to its sequence's cache up to its own position, which it extends; the
        result is a view of the workspace, good until the next call.
        """
        return self.logits(batch, self.layers(batch))

    def hidden(self, batch: Batch) -> Buffer:
        """What the logits are made of: float32[n_tokens, n_embd] after the last norm, of all rows.

        It extends the cache as `forward` does, and is a view as good as long.
        """
        return self.normed(self.layers(batch))

    def normed(self, ws: Rows) -> Buffer:
        """The residual stream after the last norm."""
        self.ops.rms_norm(ws.x, self.weights.output_norm, self.hp.norm_eps, out=ws.x_norm)
        return ws.x_norm

    def layers(self, batch: Batch, x: NDArray[np.float32] | None = None) -> Rows:
        """The residual stream behind the last layer, `x` of the rows; given is what the layers of
        the stage before have made of it, None where there is none."""
        self._check(batch)
        ws = self._load(batch)
        if x is None:
            self._embed(ws)
        else:
            self.ops.write(ws.x, x)
        self._blocks(ws, batch.has_single_rows)
        np.maximum.at(self.kv.seq_lens, batch.seq, batch.pos + 1)
        return ws

    def _blocks(self, ws: Rows, single_rows: bool) -> None:
        for layer, w in enumerate(self.weights.layers):
            self._attention_block(layer, w, ws, single_rows)
            self._ffn_block(layer, w, ws)

    def _embed(self, ws: Rows) -> None:
        self.ops.embedding(self.weights.token_embd, ws.token_ids, out=ws.x)  # [t, n_embd]
        if self._embedding_factor != 1:
            self.ops.scale(ws.x, self._embedding_factor)

    def _check(self, batch: Batch) -> None:
        ws = self.workspace
        if batch.n_tokens > ws.max_tokens or batch.logit_rows.size > ws.max_logits:
            raise KernelContractError(
                f"batch: {batch.n_tokens} rows and {batch.logit_rows.size} logits, "
                f"the workspace holds {ws.max_tokens} and {ws.max_logits}"
            )
        ranges = (
            ("token_ids", batch.token_ids, self.hp.vocab_size),
            ("seq", batch.seq, self.kv.n_seqs),
            ("pos", batch.pos, self.kv.max_seq_len),
        )
        for name, values, end in ranges:
            if values.min() < 0 or values.max() >= end:
                raise KernelContractError(f"batch.{name}: expected 0 to {end - 1}, got {values}")

    def _load(self, batch: Batch) -> Rows:
        ws = self.workspace.rows(batch.n_tokens)
        self.ops.write(ws.token_ids, batch.token_ids)
        self.ops.write(ws.seq, batch.seq)
        self.ops.write(ws.pos, batch.pos)
        return ws

    def _attention_block(self, layer: int, w: LayerWeights, ws: Rows, single_rows: bool) -> None:
        ops, k_cache, v_cache = self.ops, self.kv.k[layer], self.kv.v[layer]
        x = self._normed(ws, w.attn_norm)  # [t, n_embd]
        with ops.beside():
            self._product(layer, "attn_k", x, ws.k)  # [t, kv_dim]
            self._product(layer, "attn_v", x, ws.v)  # [t, kv_dim]
        self._product(layer, "attn_q", x, ws.q)  # [t, q_dim]
        ops.join()
        if self.arch.qk_norm != "none":
            is_row = self.arch.qk_norm == "row"
            q, k = (ws.q, ws.k) if is_row else (ws.q_heads, ws.k_heads)
            ops.rms_norm(q, w.attn_q_norm, self.hp.norm_eps, out=q)
            ops.rms_norm(k, w.attn_k_norm, self.hp.norm_eps, out=k)
        rope = self._ropes[layer]
        ops.rope_append(ws.q_heads, ws.k_heads, ws.v_heads, k_cache, v_cache, ws.seq, ws.pos, rope)
        ops.attention(
            ws.q_heads,
            k_cache,
            v_cache,
            ws.seq,
            ws.pos,
            scale=self._scale,
            window=self._windows[layer],
            softcap=self._attn_softcap,
            single_rows=single_rows,
            out=ws.attn_heads,
        )  # [t, n_heads, head_dim]
        self._add(layer, "attn_output", ws, ws.attn, w.post_attention_norm)

    def _ffn_block(self, layer: int, w: LayerWeights, ws: Rows) -> None:
        ops = self.ops
        x = self._normed(ws, w.ffn_norm)  # [t, n_embd]
        if w.experts is not None:
            add_experts(ops, w.experts, ws, x, self.hp)
            return
        with ops.beside():
            self._product(layer, "ffn_up", x, ws.up)  # [t, n_ff]
        self._product(layer, "ffn_gate", x, ws.gate)  # [t, n_ff]
        ops.join()
        gated = ops.geglu if self.arch.activation == "gelu" else ops.swiglu
        gated(ws.gate, ws.up, out=ws.gate)  # in place
        self._add(layer, "ffn_down", ws, ws.gate, w.post_ffw_norm)

    def _normed(self, ws: Rows, norm: Buffer | None) -> Buffer:
        """The residual stream as a block reads it."""
        if norm is None:
            return ws.x
        self.ops.rms_norm(ws.x, norm, self.hp.norm_eps, out=ws.x_norm)
        return ws.x_norm

    def _product(
        self, layer: int, name: str, x: Buffer, out: Buffer, *, accumulate: bool = False
    ) -> None:
        """out (+)= W x (+ bias), and what the adapter adds, of a matrix of the layer."""
        w = self.weights.layers[layer]
        matrix, bias = getattr(w, name), getattr(w, f"{name}_bias")
        self.ops.matmul(matrix, x, out=out, bias=bias, accumulate=accumulate)
        if self.adapter is not None:
            self.adapter.add(f"blk.{self.part.first + layer}.{name}", x, out)

    def _add(self, layer: int, name: str, ws: Rows, x: Buffer, norm: Buffer | None) -> None:
        """ws.x += residual_scale * norm(W x + bias), of which the product adds if that is all."""
        ops, factor = self.ops, self.hp.residual_scale
        if norm is None and factor == 1:
            self._product(layer, name, x, ws.x, accumulate=True)
            return
        self._product(layer, name, x, ws.x_norm)
        if norm is not None:
            ops.rms_norm(ws.x_norm, norm, self.hp.norm_eps, out=ws.x_norm)
        ops.add_scaled(ws.x, ws.x_norm, factor)

    def logits(self, batch: Batch, ws: Rows) -> Buffer:
        """Only the rows that somebody wants go through the output matrix."""
        ops, n_logits = self.ops, batch.logit_rows.size
        rows = self.workspace.logit_rows[:n_logits]
        x_last = self.workspace.x_last[:n_logits]
        logits = self.workspace.logits[:n_logits]
        ops.write(rows, batch.logit_rows)
        ops.take_rows(ws.x, rows, out=x_last)  # [n_logits, n_embd]
        ops.rms_norm(x_last, self.weights.output_norm, self.hp.norm_eps, out=x_last)
        self._logits(x_last, logits)
        return logits

    def _logits(self, x: Buffer, logits: Buffer) -> None:
        """Of rows after the last norm: [n_logits, vocab_size]."""
        ops = self.ops
        ops.matmul(self.weights.output, x, out=logits)
        if self.adapter is not None:
            self.adapter.add("output", x, logits)
        if self.hp.logit_scale != 1:
            ops.scale(logits, 1 / self.hp.logit_scale)
        if self._logit_softcap:
            ops.softcap(logits, self._logit_softcap)
