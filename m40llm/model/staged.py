"""A model whose layers lie on several devices, as one: the host hands the residual stream over."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m40llm.device.ops import Buffer, Ops
from m40llm.errors import RequestError
from m40llm.model.batch import Batch
from m40llm.model.lora import Adapter
from m40llm.model.sites import Hooks
from m40llm.model.transformer import Transformer
from m40llm.model.workspace import Rows


def _stage_of(layer: int, stages: tuple[Transformer, ...]) -> Transformer:
    return next(stage for stage in stages if layer in stage.part.layers)


class StagedTransformer:
    """Stages in the order of their layers, each with its own device, weights, cache and workspace.

    To whoever runs it, it is a `Transformer` on the device of the last one, which has the logits.
    """

    def __init__(self, stages: tuple[Transformer, ...]) -> None:
        self.stages, last = stages, stages[-1]
        self.ops, self.arch, self.hp, self.workspace = last.ops, last.arch, last.hp, last.workspace
        self.kv = StagedCache(stages)

    @property
    def adapter(self) -> Adapter | None:
        return self.stages[-1].adapter

    @adapter.setter
    def adapter(self, adapter: Adapter | None) -> None:
        for stage in self.stages:
            stage.adapter = adapter

    @property
    def hooks(self) -> Hooks | None:
        return self.stages[-1].hooks

    @hooks.setter
    def hooks(self, hooks: Hooks | None) -> None:
        for stage in self.stages:
            stage.hooks = hooks

    @property
    def decoder(self) -> str:
        """No device can decode by itself: why."""
        where = " and ".join(f"{len(s.part.layers)} on {s.ops.name}" for s in self.stages)
        return f"its layers are on two devices, {where}, and the host hands over between them"

    def decoder_of(self, n_seqs: int) -> str:
        return self.decoder

    def ops_of(self, name: str) -> Ops:
        return next(stage.ops for stage in self.stages if stage.part.holds(name))

    def recover(self) -> None:
        for stage in self.stages:
            stage.recover()

    def forward(self, batch: Batch) -> Buffer:
        return self.stages[-1].logits(batch, self._layers(batch))

    def hidden(self, batch: Batch) -> Buffer:
        return self.stages[-1].normed(self._layers(batch))

    def unembed(
        self, x: NDArray[np.float32], *, is_normed: bool = False, is_capped: bool = True
    ) -> NDArray[np.float32]:
        return self.stages[-1].unembed(x, is_normed=is_normed, is_capped=is_capped)

    def norm_weight(self) -> NDArray[np.float32]:
        return self.stages[-1].norm_weight()

    def head_outputs(self, layer: int, z: NDArray[np.float32]) -> NDArray[np.float64]:
        stage = _stage_of(layer, self.stages)
        return stage.head_outputs(layer, z)

    def _layers(self, batch: Batch) -> Rows:
        without_logits = replace(batch, logit_rows=batch.logit_rows[:0])
        *before, last = self.stages
        x: NDArray[np.float32] | None = None  # [t, n_embd]
        for stage in before:
            x = stage.ops.read(stage.layers(without_logits, x).x)
        return last.layers(batch, x)


class StagedCache:
    """The stages' caches as one `KVCache`."""

    def __init__(self, stages: tuple[Transformer, ...]) -> None:
        self._stages, last = stages, stages[-1].kv
        self.n_seqs, self.max_seq_len, self.seq_lens = last.n_seqs, last.max_seq_len, last.seq_lens
        for stage in stages:
            stage.kv.seq_lens = self.seq_lens  # one array: a length set here is set in all

    def read(self, layer: int, seq: int, pos: int) -> tuple[NDArray[np.generic], ...]:
        for stage in self._stages:
            if layer in stage.part.layers:
                return stage.kv.read(layer - stage.part.first, seq, pos)
        raise RequestError(f"kv.read: no layer {layer} of sequence {seq}")

    def prefix(self, layer: int, seq: int, n: int) -> tuple[NDArray[Any], NDArray[Any]]:
        stage = _stage_of(layer, self._stages)
        return stage.kv.prefix(layer - stage.part.first, seq, n)

    def write(self, layer: int, seq: int, k: NDArray[Any], v: NDArray[Any]) -> None:
        stage = _stage_of(layer, self._stages)
        stage.kv.write(layer - stage.part.first, seq, k, v)

    def copy_prefix(self, source: int, seq: int, seq_len: int) -> None:
        for stage in self._stages:
            stage.kv.copy_prefix(source, seq, seq_len)

    def truncate(self, seq: int, seq_len: int) -> None:
        self._stages[-1].kv.truncate(seq, seq_len)


Model = Transformer | StagedTransformer
