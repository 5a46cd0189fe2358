"""On `cpu` the logits of a row are the same bits alone and beside any others, up to 16 rows.

So what a request is answered does not depend on who else is in the batch.
"""

from collections.abc import Callable

import numpy as np
import pytest

from m40llm.device.cpu.vectors import MAX_VECTORS
from m40llm.model.batch import Batch
from m40llm.model.kv_cache import KVType
from m40llm.model.transformer import Transformer

MODELS = {
    "llama": {},
    "odd widths": {"n_embd": 40, "n_heads": 4, "n_ff": 100},
    "qwen2": {"arch": "qwen2", "tensor_type": "Q8_0"},
    "qwen3": {"arch": "qwen3", "tensor_type": "Q4_0", "head_dim": 32},
    "olmo2": {"arch": "olmo2"},
    "gemma2": {"arch": "gemma2"},
    "gemma3": {"arch": "gemma3", "tensor_type": "Q4_K", "n_heads": 8},
    "granite": {"arch": "granite", "tensor_type": "F16"},
    "phi3": {"arch": "phi3"},
    "mixtral": {"arch": "mixtral", "tensor_type": "Q5_0"},
    "qwen3moe": {"arch": "qwen3moe", "tensor_type": "Q8_0"},
}


def logits_of(model: Transformer, *pieces: tuple[int, int, list[int]]) -> np.ndarray:
    return model.ops.read(model.forward(Batch.of(*pieces, logits="all")))


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
@pytest.mark.parametrize("name", MODELS)
def test_single_rows_of_many_sequences(
    name: str, kv_type: KVType, tiny: Callable[..., Transformer]
) -> None:
    """Decode: sequences of unlike lengths, a row of each."""
    shape = {"head_dim": 32, **MODELS[name]}  # q8_0 has blocks of 32
    model = tiny(n_seqs=MAX_VECTORS, kv_type=kv_type, **shape)
    rng = np.random.default_rng(0)
    vocab_size = model.hp.vocab_size
    lengths = [1 + 5 * s % 23 for s in range(MAX_VECTORS)]
    for s, n in enumerate(lengths):
        model.forward(Batch.of((s, 0, rng.integers(0, vocab_size, n).tolist())))
    pieces = [(s, n, [int(rng.integers(vocab_size))]) for s, n in enumerate(lengths)]
    alone = np.concatenate([logits_of(model, piece) for piece in pieces])
    assert np.isfinite(alone).all()
    for n in (2, 4, 5, MAX_VECTORS):
        together = logits_of(model, *pieces[-n:])
        assert (together.view(np.uint32) == alone[-n:].view(np.uint32)).all(), n


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen3moe"])
def test_rows_of_one_sequence(name: str, kv_type: KVType, tiny: Callable[..., Transformer]) -> None:
    """Tokens that were proposed: the logits are those of one token after another."""
    model = tiny(n_seqs=2, kv_type=kv_type, **{"head_dim": 32, **MODELS[name]})
    ids = np.random.default_rng(1).integers(0, model.hp.vocab_size, 30).tolist()
    for s in range(2):
        model.forward(Batch.of((s, 0, ids[:9])))
    one_by_one = [logits_of(model, (0, at, ids[at : at + 1])) for at in range(9, 9 + MAX_VECTORS)]
    at_once = logits_of(model, (1, 9, ids[9 : 9 + MAX_VECTORS]))
    assert (at_once.view(np.uint32) == np.concatenate(one_by_one).view(np.uint32)).all()
