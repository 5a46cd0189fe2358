"""A model in stages on several devices is the model on one: bit for bit where ops are the same."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m40llm.device.cpu.ops import CpuOps
from m40llm.device.ops import Ops
from m40llm.errors import RequestError
from m40llm.gguf import open_gguf
from m40llm.model.arch import architecture_of
from m40llm.model.batch import Batch
from m40llm.model.hparams import HParams
from m40llm.model.lora import load_adapter
from m40llm.model.part import Part, split
from m40llm.model.staged import StagedTransformer
from m40llm.model.transformer import Transformer
from m40llm.model.weights import load_weights, rope_factors, weight_bytes
from m40llm.testing import write_tiny_gguf
from m40llm.testing.adapters import write_adapter
from m40llm.testing.models import build

MODELS: dict[str, dict[str, Any]] = {
    "llama": {"n_layers": 3, "tensor_type": "Q8_0"},
    "tied": {"n_layers": 3, "tied": True},
    "smollm3, a layer without RoPE": {"arch": "smollm3", "n_layers": 5},
    "gemma3, layers of two kinds": {
        "arch": "gemma3",
        "n_layers": 7,
        "metadata": {"gemma3.attention.sliding_window": 6},
    },
    "phi3, fused": {"arch": "phi3"},
    "olmo2": {"arch": "olmo2"},
    "granite, multipliers": {
        "arch": "granite",
        "metadata": {
            "granite.residual_scale": 0.5,
            "granite.embedding_scale": 3.0,
            "granite.logit_scale": 2.0,
        },
    },
    "mixtral": {"arch": "mixtral"},
}
IDS = np.random.default_rng(1).integers(0, 250, 21).tolist()


class ReadCounter(CpuOps):
    """Counts what leaves it, and what it is given of the weights."""

    def __init__(self) -> None:
        self.n_reads, self.n_matrices = 0, 0

    def read(self, buffer: Any) -> Any:
        self.n_reads += 1
        return super().read(buffer)

    def matrix(self, *args: Any) -> Any:
        self.n_matrices += 1
        return super().matrix(*args)


def staged(path: Path, ends: list[int], ops: list[Ops] | None = None) -> StagedTransformer:
    """Stages whose layers end before these."""
    with open_gguf(path) as file:
        arch, hp = architecture_of(file), HParams.from_gguf(file)
        stages = []
        for i, (first, end) in enumerate(zip([0, *ends], [*ends, hp.n_layers], strict=True)):
            part, where = Part(first, end, hp.n_layers), ops[i] if ops else CpuOps()
            stages.append(
                Transformer(
                    *(where, arch, hp, load_weights(where, file, arch, hp, part=part)),
                    n_seqs=2,
                    max_seq_len=hp.context_length,
                    max_tokens=64,
                    max_logits=64 if part.has_output else 0,
                    freq_factors=rope_factors(file, hp, hp.context_length),
                    part=part,
                )
            )
    return StagedTransformer(tuple(stages))


def run(model: Any) -> Iterator[np.ndarray]:
    """Prefill of two sequences in two pieces each, decode, hidden states."""
    for batch in (
        Batch.of((0, 0, IDS[:9]), (1, 0, IDS[9:12]), logits="all"),
        Batch.of((0, 9, IDS[9:]), (1, 3, [7]), logits="last"),
        Batch.of((0, len(IDS), [3]), (1, 4, [5])),
    ):
        yield model.ops.read(model.forward(batch))
    yield model.ops.read(model.hidden(Batch.of((0, 22, [4, 9]), logits="none")))


@pytest.mark.parametrize("name", MODELS)
def test_as_on_one_device(name: str, tmp_path: Path) -> None:
    """For every place to split at, and at two places at once."""
    path = write_tiny_gguf(tmp_path / "tiny.gguf", **MODELS[name])
    whole = build(path, CpuOps(), n_seqs=2)
    expected, n_layers = list(run(whole)), whole.hp.n_layers
    for ends in [*([at] for at in range(1, n_layers)), [1, n_layers - 1]]:
        model = staged(path, ends)
        for got, wanted in zip(run(model), expected, strict=True):
            np.testing.assert_array_equal(got, wanted)
        np.testing.assert_array_equal(model.kv.seq_lens, whole.kv.seq_lens)
        for layer in range(n_layers):
            np.testing.assert_array_equal(model.kv.read(layer, 0, 7), whole.kv.read(layer, 0, 7))


def test_handed_over_once(tmp_path: Path) -> None:
    """A forward reads x of the first stage and nothing else; weights are where they are needed."""
    path = write_tiny_gguf(tmp_path / "tiny.gguf", n_layers=3)
    first, last = ReadCounter(), ReadCounter()
    model = staged(path, [1], [first, last])
    assert (first.n_matrices, last.n_matrices) == (1 + 7, 1 + 2 * 7)  # the embedding, the output
    for n in (1, 2):
        model.forward(Batch.of((0, 0, IDS)))
        assert (first.n_reads, last.n_reads) == (n, 0)


def test_the_cache_is_one(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", n_layers=3)
    model = staged(path, [1])
    model.forward(Batch.of((0, 0, IDS)))
    model.kv.truncate(0, 5)
    assert [stage.kv.seq_lens[0] for stage in model.stages] == [5, 5]
    for layer, pos in ((3, 0), (-1, 0), (0, 5)):
        with pytest.raises(RequestError, match=r"kv\.read"):
            model.kv.read(layer, 0, pos)


def test_why_it_has_no_decoder(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", n_layers=3)
    assert "on two devices, 1 on cpu and 2 on cpu" in staged(path, [1]).decoder


def test_an_adapter_goes_where_its_matrices_are(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", n_layers=3)
    tensors = [f"blk.{layer}.attn_q.weight" for layer in range(3)] + ["output.weight"]
    adapter = write_adapter(tmp_path / "a.gguf", path, tensors)
    whole, counters = build(path, CpuOps(), n_seqs=2), [ReadCounter(), ReadCounter()]
    model = staged(path, [1], list(counters))
    before = [counter.n_matrices for counter in counters]
    with open_gguf(adapter) as file:
        for each in (whole, model):
            each.adapter = load_adapter(each.ops_of, file, each.arch, each.hp, max_tokens=64)
    assert [c.n_matrices - n for c, n in zip(counters, before, strict=True)] == [2, 2 * 3]
    for got, wanted in zip(run(model), run(whole), strict=True):
        np.testing.assert_array_equal(got, wanted)
    model.adapter = None
    for got, wanted in zip(run(model), run(build(path, CpuOps(), n_seqs=2)), strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("tied", [False, True])
def test_the_bytes_of_the_parts_are_those_of_the_whole(tied: bool, tmp_path: Path) -> None:
    """But for a tied embedding, which two devices both have."""
    path = write_tiny_gguf(tmp_path / "tiny.gguf", n_layers=3, tied=tied)
    with open_gguf(path) as file:
        whole = weight_bytes(CpuOps(), file, Part.whole(3))
        twice = file.tensors["token_embd.weight"].n_bytes if tied else 0
        for n_last in (1, 2):
            parts = [weight_bytes(CpuOps(), file, part) for part in split(3, n_last)]
            assert sum(parts) == whole + twice
    assert split(3, 3)[1] == Part.whole(3)
    assert not split(3, 3)[0].layers


def test_parts_know_their_tensors() -> None:
    first, last = split(12, 2)
    assert (first.layers, last.layers) == (range(10), range(10, 12))
    for name, is_first in {
        "token_embd.weight": True,
        "blk.1.attn_q": True,
        "blk.9.ffn_up.weight": True,
        "blk.10.ffn_up.weight": False,
        "output": False,
        "output_norm.weight": False,
    }.items():
        assert (first.holds(name), last.holds(name)) == (is_first, not is_first)
