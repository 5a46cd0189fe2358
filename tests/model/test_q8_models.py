"""Whole models with the cache in Q8_0, against FP64 over the same blocks, and the cache's laws."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from m40llm import reference
from m40llm.device import open_device
from m40llm.device.ops import Q8Cache, RopeTable
from m40llm.errors import RequestError
from m40llm.model.batch import Batch
from m40llm.model.transformer import Transformer
from m40llm.testing.noisy_ops import NoisyOps
from m40llm.testing.reference_ops import ReferenceOps

Tiny = Callable[..., Transformer]
N_TOKENS, N_FIRST = 21, 17  # a whole panel of 16 lanes and one more; then token after token
DEVICES = [
    pytest.param("cpu"),
    pytest.param("emulator"),
    pytest.param("cuda", marks=pytest.mark.gpu),
]
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"head_dim": 32},
    "qwen2": {"arch": "qwen2", "head_dim": 64},
    "gemma3": {
        "arch": "gemma3",
        "head_dim": 32,
        "n_layers": 6,
        "metadata": {"gemma3.attention.sliding_window": 12},
    },
}


class GivenOps(ReferenceOps):
    """The cache holds another device's blocks already; they must stand for these keys and values.

    A quant is at most half a step from its element, and 127 steps of a scale that FP16 has rounded
    are at most 127 * 2^-11 of one off; the rest is for FP32's rounding before.
    """

    def rope_append(
        self, q: Any, k: Any, v: Any, k_cache: Q8Cache, v_cache: Q8Cache, seq: Any, pos: Any,
        table: RopeTable,
    ) -> None:  # fmt: skip
        self.rope(q, pos, table)
        self.rope(k, pos, table)
        for x, cache in ((k, k_cache), (v, v_cache)):
            quants, scales = cache.quants[seq, :, pos], cache.scales[seq, :, pos]
            step = np.repeat(scales.astype(np.float64), 32, axis=-1)
            off = np.abs(x - reference.dequantise_q8(quants, scales))
            assert (off <= (0.5 + 127 * 2**-11 + 0.01) * step).all()


class NoisyGivenOps(NoisyOps):
    """The same, of which only what reads the cache is of interest."""

    def rope_append(self, q: Any, k: Any, v: Any, *rest: Any) -> None:
        *_, pos, table = rest
        self.rope(q, pos, table)


def logits_in_parts(model: Transformer, ids: list[int]) -> np.ndarray:
    """Of all rows: ragged pieces, then token after token."""
    found, ends = [], [0, 3, 4, N_FIRST, *range(N_FIRST + 1, len(ids) + 1)]
    for first, end in pairwise(ends):
        batch = Batch.of((0, first, ids[first:end]), logits="all")
        found.append(model.ops.read(model.forward(batch)))
    return np.concatenate(found)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_over_its_blocks(
    device: str, name: str, tiny: Tiny, drawn_ids: Callable
) -> None:
    """Within FP32's rounding of FP64, and the greedy token the same wherever that decides it.

    Four noisy runs show the spread; the true error is one more draw of it, so twice the widest.
    """
    shape, (ops, _) = MODELS[name], open_device(device)
    model = tiny(ops, kv_type="q8_0", **shape)
    ids = drawn_ids(N_TOKENS, model.hp.vocab_size)
    got = logits_in_parts(model, ids)

    def over_its_blocks(ops: ReferenceOps) -> np.ndarray:
        other = tiny(ops, kv_type="q8_0", **shape)
        for mine, given in ((other.kv.k, model.kv.k), (other.kv.v, model.kv.v)):
            mine.quants[..., :N_TOKENS, :] = model.ops.read(given.quants)[..., :N_TOKENS, :]
            mine.scales[..., :N_TOKENS, :] = model.ops.read(given.scales)[..., :N_TOKENS, :]
            mine.scales[..., N_TOKENS:, :] = np.nan  # to be read by nobody
        return logits_in_parts(other, ids)

    exact = over_its_blocks(GivenOps())
    noisy = [over_its_blocks(NoisyGivenOps(seed)) for seed in range(4)]
    bound = 2 * max(np.abs(run - exact).max() for run in noisy)
    assert np.abs(got - exact).max() <= bound
    best = np.sort(exact, axis=1)
    is_sure = best[:, -1] - best[:, -2] > 2 * bound
    assert is_sure.sum() > N_TOKENS // 2
    assert (got.argmax(1) == exact.argmax(1))[is_sure].all()


@pytest.mark.parametrize("device", DEVICES)
def test_in_parts_is_at_once(device: str, tiny: Tiny, drawn_ids: Callable) -> None:
    """Prefill in ragged pieces, then decode: as all at once, within what FP32's rounding changes,
    by which a quant is its neighbour now and then."""
    shape = {"head_dim": 32, "kv_type": "q8_0"}
    exact_model = tiny(ReferenceOps(), **shape)
    ids = drawn_ids(N_TOKENS, exact_model.hp.vocab_size)
    exact = logits_in_parts(exact_model, ids)
    noisy = [logits_in_parts(tiny(NoisyOps(seed), **shape), ids) for seed in range(4)]
    bound = 4 * max(float(np.abs(run - exact).max()) for run in noisy)  # two runs may differ so
    ops, _ = open_device(device)
    model = tiny(ops, **shape)
    whole = model.ops.read(model.forward(Batch.of((0, 0, ids), logits="all")))
    assert np.abs(logits_in_parts(tiny(ops, **shape), ids) - whole).max() <= bound
    model.kv.truncate(0, 5)  # rolled back: what was there is forgotten
    row = model.ops.read(model.forward(Batch.of((0, 5, [ids[5]]))))[0]
    assert np.abs(row - whole[5]).max() <= bound


def test_what_it_costs(tiny: Tiny, drawn_ids: Callable) -> None:
    """Logits of an FP32 cache move by more than FP32 rounds and by less than a tenth: it is used,
    and it is right."""
    plain = tiny(head_dim=32)
    ids = drawn_ids(N_TOKENS, plain.hp.vocab_size)
    moved = np.abs(
        logits_in_parts(tiny(head_dim=32, kv_type="q8_0"), ids) - logits_in_parts(plain, ids)
    ).max()
    assert 1e-3 < moved < 0.2


def test_heads_it_cannot_hold(tiny: Tiny) -> None:
    with pytest.raises(RequestError, match=r"^kv_type: expected 'f16', .* head_dim is 16"):
        tiny(head_dim=16, kv_type="q8_0")
