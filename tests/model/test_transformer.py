"""The transformer on the cpu ops against FP64, and the laws of a causal model with a cache."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from m40llm.device.cpu.ops import CpuOps
from m40llm.errors import KernelContractError
from m40llm.model.batch import Batch
from m40llm.model.transformer import Transformer
from m40llm.testing.noisy_ops import NoisyOps
from m40llm.testing.reference_ops import ReferenceOps

Tiny = Callable[..., Transformer]
N_TOKENS = 21  # a whole panel of 16 lanes and a part of one

MODELS: dict[str, dict[str, Any]] = {
    "F32": {},
    "F16": {"tensor_type": "F16"},
    "Q4_1": {"tensor_type": "Q4_1"},
    "Q8_0": {"tensor_type": "Q8_0", "tied": True},
    "Q4_K": {"tensor_type": "Q4_K"},
    "IQ4_XS": {"tensor_type": "IQ4_XS"},
    "mistral": {"arch": "mistral"},
    "qwen2": {"arch": "qwen2"},
    "qwen3": {"arch": "qwen3", "head_dim": 24},
    "smollm3": {"arch": "smollm3", "n_layers": 5, "tied": True},
    "phi3": {"arch": "phi3", "tensor_type": "Q8_0"},
    "phi3, longrope": {
        "arch": "phi3",
        "rope_factors": True,
        "rope_scaling": {"type": "longrope", "factor": 4.0, "original_context_length": 32},
    },
    "head_dim not n_embd / n_heads": {"head_dim": 24},
    "one kv head": {"n_kv_heads": 1},
    "no groups": {"n_kv_heads": 4},
    "partial rope": {"head_dim": 32, "rope_dim": 16},
    "rope_freqs": {"rope_freqs": True},
    "linear": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "yarn": {
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_context_length": 32},
    },
    "odd widths": {"n_embd": 56, "n_ff": 100},
}


def logits_of(model: Transformer, ids: list[int]) -> np.ndarray:
    return model.ops.read(model.forward(Batch.of((0, 0, ids), logits="all")))


@pytest.mark.parametrize("name", MODELS)
def test_logits_within_fp32_rounding(name: str, tiny: Tiny, drawn_ids: Callable) -> None:
    """Deviation from FP64 of the size that FP32 rounding explains, and no larger.

    Four noisy runs show the spread; the true error is one more draw of it, so twice the widest.
    """
    shape = MODELS[name]
    exact_model = tiny(ReferenceOps(), **shape)
    ids = drawn_ids(N_TOKENS, exact_model.hp.vocab_size)
    exact = logits_of(exact_model, ids)
    noisy = [logits_of(tiny(NoisyOps(seed), **shape), ids) for seed in range(4)]
    bound = 2 * max(np.abs(run - exact).max() for run in noisy)
    got = logits_of(tiny(**shape), ids)
    assert np.abs(got - exact).max() <= bound


@pytest.fixture
def bound(tiny: Tiny, drawn_ids: Callable) -> float:
    """What FP32 rounding may change in the default tiny model's logits."""
    exact_model = tiny(ReferenceOps())
    ids = drawn_ids(N_TOKENS, exact_model.hp.vocab_size)
    exact = logits_of(exact_model, ids)
    noisy = [logits_of(tiny(NoisyOps(seed)), ids) for seed in range(4)]
    return 4 * max(float(np.abs(run - exact).max()) for run in noisy)  # two runs may differ so


@pytest.mark.parametrize("n_first", [1, 2, 15, 16, 20])
def test_prefill_then_decode_is_prefill_of_more(
    n_first: int, tiny: Tiny, drawn_ids: Callable, bound: float
) -> None:
    model = tiny()
    ids = drawn_ids(N_TOKENS, model.hp.vocab_size)
    whole = logits_of(model, ids)
    model = tiny()
    logits_of(model, ids[:n_first])
    for pos in range(n_first, N_TOKENS):
        row = model.ops.read(model.forward(Batch.of((0, pos, [ids[pos]]))))[0]
        assert np.abs(row - whole[pos]).max() <= bound


def test_ragged_batch_equals_one_by_one(tiny: Tiny, drawn_ids: Callable, bound: float) -> None:
    lengths = [7, 1, 18, 4]
    model = tiny(n_seqs=len(lengths))
    prompts = [drawn_ids(n, model.hp.vocab_size, seed=n) for n in lengths]
    batch = Batch.of(*((s, 0, ids) for s, ids in enumerate(prompts)))
    together = model.ops.read(model.forward(batch))
    mixed = Batch.of((2, 18, [5]), (0, 7, [6, 7, 8]), (3, 4, [9]))  # decode beside prefill
    then = model.ops.read(model.forward(mixed))
    for s, ids in enumerate(prompts):
        alone = logits_of(tiny(), ids)[-1]
        assert np.abs(together[s] - alone).max() <= bound
    longer = (prompts[2] + [5], prompts[0] + [6, 7, 8], prompts[3] + [9])
    for row, ids in zip(then, longer, strict=True):
        assert np.abs(row - logits_of(tiny(), ids)[-1]).max() <= bound


def test_rolled_back_cache_forgets(tiny: Tiny, drawn_ids: Callable, bound: float) -> None:
    model = tiny()
    ids = drawn_ids(12, model.hp.vocab_size)
    logits_of(model, ids)
    model.kv.truncate(0, 5)
    assert model.kv.seq_lens[0] == 5
    row = model.ops.read(model.forward(Batch.of((0, 5, [ids[5]]))))[0]
    assert np.abs(row - logits_of(tiny(), ids[:6])[-1]).max() <= bound


def test_cache_read_gives_one_token(tiny: Tiny) -> None:
    model = tiny()
    logits_of(model, [5, 6, 7])
    k, v = model.kv.read(1, 0, 2)
    np.testing.assert_array_equal(k, model.kv.k[1, 0, :, 2])
    np.testing.assert_array_equal(v, model.kv.v[1, 0, :, 2])
    assert k.shape == (model.hp.n_kv_heads, model.hp.head_dim)


def test_bad_batches_are_refused(tiny: Tiny) -> None:
    model = tiny()
    bad = {
        "token_ids": Batch.of((0, 0, [model.hp.vocab_size])),
        "seq": Batch.of((1, 0, [0])),
        "pos": Batch.of((0, model.kv.max_seq_len, [0])),
        "65 rows": Batch.of((0, 0, [0] * 65)),
    }
    for fragment, batch in bad.items():
        with pytest.raises(KernelContractError, match=fragment):
            model.forward(batch)
    with pytest.raises(KernelContractError, match="n >= 1"):
        Batch.of((0, 0, []))


def test_nothing_is_allocated_by_decode(tiny: Tiny) -> None:
    """Every buffer of a second step is the first step's."""
    model = tiny()
    first = model.forward(Batch.of((0, 0, [3])))
    second = model.forward(Batch.of((0, 1, [4])))
    assert first.ctypes.data == second.ctypes.data
    assert isinstance(model.ops, CpuOps)
