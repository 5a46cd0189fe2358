"""The decoder-only transformer, written once over `Ops`, from token ids to logits."""

import numpy as np
from numpy.typing import NDArray

from m40llm.device.decoder import Decoder
from m40llm.device.ops import Buffer, Ops
from m40llm.errors import KernelContractError
from m40llm.model.arch import Architecture
from m40llm.model.batch import Batch
from m40llm.model.decoders import decoder_of
from m40llm.model.hparams import HParams
from m40llm.model.kv_cache import KVCache, KVType
from m40llm.model.layers import Layers
from m40llm.model.part import Part
from m40llm.model.rope import rope_tables
from m40llm.model.weights import Weights
from m40llm.model.workspace import Rows, Workspace


class Transformer(Layers):
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
        part = part or Part.whole(hp.n_layers)
        kv = KVCache(ops, hp, n_seqs, max_seq_len, kv_type, len(part.layers))
        self.workspace = Workspace(ops, hp, max_tokens, max_logits)
        ropes = rope_tables(ops, arch, hp.rope, part.layers, max_seq_len, freq_factors)
        super().__init__(ops, arch, hp, weights, part, kv, ropes)
        self._embedding_factor = arch.embedding_factor(hp)
        self._decoders: dict[int, Decoder | str] = {}

    @property
    def decoder(self) -> Decoder | str:
        """What decodes all sequences on the device by itself; or why nothing does."""
        return self.decoder_of(self.kv.n_seqs)

    def decoder_of(self, n_seqs: int) -> Decoder | str:
        """What decodes the first n_seqs sequences, made at the first call."""
        if n_seqs not in self._decoders:
            self._decoders[n_seqs] = decoder_of(self, n_seqs, self._forward_rows)
        return self._decoders[n_seqs]

    def ops_of(self, name: str) -> Ops:
        """Whose device a matrix is on: "blk.0.attn_q", "output"."""
        return self.ops

    def recover(self) -> None:
        """Makes good what a failed op may have left half-done."""
        self.ops.recover()
        for decoder in self._decoders.values():  # none is made for it
            if not isinstance(decoder, str):
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
        self._visit("norm", ws.x_norm)
        return ws.x_norm

    def layers(self, batch: Batch, x: NDArray[np.float32] | None = None) -> Rows:
        """The residual stream behind the last layer, `x` of the rows; given is what the layers of
        the stage before have made of it, None where there is none."""
        self._check(batch)
        ws = self._load(batch)
        if self.hooks is not None:
            self.hooks.begin(batch)
        if x is None:
            self._embed(ws)
        else:
            self.ops.write(ws.x, x)
        self._run_layers(ws, batch.has_single_rows)
        np.maximum.at(self.kv.seq_lens, batch.seq, batch.pos + 1)
        return ws

    def _forward_rows(self, ws: Rows) -> None:
        """A row of each sequence, to as many rows of `workspace.logits`: all that this needs is on
        the device. See OpsStep."""
        self._embed(ws)
        self._run_layers(ws, single_rows=True)
        self._logits(self.normed(ws), self.workspace.logits[: ws.x.shape[0]])

    def _embed(self, ws: Rows) -> None:
        self.ops.embedding(self.weights.token_embd, ws.token_ids, out=ws.x)  # [t, n_embd]
        if self._embedding_factor != 1:
            self.ops.scale(ws.x, self._embedding_factor)
        self._visit("embd", ws.x)

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

    def logits(self, batch: Batch, ws: Rows) -> Buffer:
        """Only the rows that somebody wants go through the output matrix."""
        ops, n_logits = self.ops, batch.logit_rows.size
        rows = self.workspace.logit_rows[:n_logits]
        x_last = self.workspace.x_last[:n_logits]
        logits = self.workspace.logits[:n_logits]
        ops.write(rows, batch.logit_rows)
        ops.take_rows(ws.x, rows, out=x_last)  # [n_logits, n_embd]
        ops.rms_norm(x_last, self.weights.output_norm, self.hp.norm_eps, out=x_last)
        self._visit("norm", x_last, rows=batch.logit_rows)
        self._logits(x_last, logits)
        self._visit("logits", logits, rows=batch.logit_rows)
        return logits

    def unembed(
        self, x: NDArray[np.float32], *, is_normed: bool = False, is_capped: bool = True
    ) -> NDArray[np.float32]:
        """What residual streams [n, n_embd] say as logits [n, vocab_size], with the last norm or
        behind it, with the soft cap or before it; at most `workspace.max_logits` of them."""
        rows, logits = self.workspace.x_last[: len(x)], self.workspace.logits[: len(x)]
        self.ops.write(rows, x)
        if not is_normed:
            self.ops.rms_norm(rows, self.weights.output_norm, self.hp.norm_eps, out=rows)
        (self._logits if is_capped else self._uncapped_logits)(rows, logits)
        values: NDArray[np.float32] = self.ops.read(logits)
        return values

    def norm_weight(self) -> NDArray[np.float32]:
        """Of the last norm: [n_embd]."""
        weight: NDArray[np.float32] = self.ops.read(self.weights.output_norm)
        return weight

    def _logits(self, x: Buffer, logits: Buffer) -> None:
        """Of rows after the last norm: [n_logits, vocab_size]."""
        self._uncapped_logits(x, logits)
        if self._logit_softcap:
            self.ops.softcap(logits, self._logit_softcap)

    def _uncapped_logits(self, x: Buffer, logits: Buffer) -> None:
        ops = self.ops
        ops.matmul(self.weights.output, x, out=logits)
        if self.adapter is not None:
            self.adapter.add("output", x, logits)
        if self.hp.logit_scale != 1:
            ops.scale(logits, 1 / self.hp.logit_scale)
