"""The tiny models: any architecture and type, the same for the same seed, with sane weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m40llm.gguf import GGUFFile, open_gguf
from m40llm.gguf.blocks import dequantize
from m40llm.testing import write_tiny_gguf
from m40llm.testing.random_blocks import WRITABLE


def weights(file: GGUFFile, name: str) -> np.ndarray:
    tensor = file.tensors[name]
    return dequantize(tensor.type, file.tensor_bytes(name).reshape(*tensor.shape[:-1], -1))


@pytest.mark.parametrize("tensor_type", [type_.name for type_ in WRITABLE])
def test_weights_have_the_spread_of_a_fresh_network(tmp_path: Path, tensor_type: str) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", tensor_type=tensor_type, n_layers=1)
    with open_gguf(path) as file:
        for name, gain in (("blk.0.attn_q", 1.0), ("blk.0.ffn_down", 1.0), ("output", 4.0)):
            matrix = weights(file, f"{name}.weight")
            unit = gain / matrix.shape[1] ** 0.5
            assert np.isfinite(matrix).all()
            assert 0.85 < matrix.std() / unit < 1.15  # formats of 1 or 2 bits are coarse
            assert abs(matrix.mean()) < 0.12 * unit
        norm = file.tensors["output_norm.weight"]
        assert (norm.type.name, norm.shape) == ("F32", (file.metadata["llama.embedding_length"],))


def test_tensors_and_shapes_are_llama_cpps(tmp_path: Path) -> None:
    shape = {"n_heads": 4, "n_kv_heads": 2, "head_dim": 24, "n_ff": 160, "vocab_size": 500}
    path = write_tiny_gguf(tmp_path / "tiny.gguf", n_layers=2, rope_freqs=True, **shape)
    with open_gguf(path) as file:
        shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    assert len(shapes) == 4 + 2 * 9
    assert shapes["token_embd.weight"] == shapes["output.weight"] == (500, 64)
    assert shapes["rope_freqs.weight"] == (12,)
    assert shapes["blk.1.attn_q.weight"] == (96, 64)
    assert shapes["blk.1.attn_k.weight"] == shapes["blk.1.attn_v.weight"] == (48, 64)
    assert shapes["blk.1.attn_output.weight"] == (64, 96)
    assert shapes["blk.1.ffn_gate.weight"] == shapes["blk.1.ffn_up.weight"] == (160, 64)
    assert shapes["blk.1.ffn_down.weight"] == (64, 160)


def test_tied_output_and_biases(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    with open_gguf(write_tiny_gguf(path, arch="qwen2", tied=True)) as file:
        assert "output.weight" not in file.tensors
        assert file.tensors["blk.0.attn_k.bias"].shape == (32,)
        assert file.metadata.get_str("general.architecture") == "qwen2"
    with open_gguf(write_tiny_gguf(path, arch="qwen2", biases=False)) as file:
        assert not any(name.endswith("bias") for name in file.tensors)
    with open_gguf(write_tiny_gguf(path, arch="mistral", biases=True)) as file:
        assert "blk.1.attn_v.bias" in file.tensors


@pytest.mark.parametrize("tokenizer", ["spm", "bpe"])
def test_vocabularies_are_consistent(tmp_path: Path, tokenizer: str) -> None:
    path = write_tiny_gguf(tmp_path / "t.gguf", tokenizer=tokenizer, chat_template="{{ messages }}")
    with open_gguf(path) as file:
        metadata = file.metadata
        tokens = metadata.get_strings("tokenizer.ggml.tokens")
        assert len(set(tokens)) == len(tokens) == file.tensors["token_embd.weight"].shape[0]
        assert len(metadata.get_ints("tokenizer.ggml.token_type")) == len(tokens)
        for name in ("bos", "eos"):
            token_id = metadata.get_int(f"tokenizer.ggml.{name}_token_id")
            assert metadata.get_ints("tokenizer.ggml.token_type")[token_id] == 3  # control
        if tokenizer == "spm":
            assert len(metadata.get_floats("tokenizer.ggml.scores")) == len(tokens)
        for merge in metadata.get_strings("tokenizer.ggml.merges", []):
            left, right = merge.split(" ")
            assert {left, right, left + right} <= set(tokens)
        assert metadata.get_str("tokenizer.chat_template") == "{{ messages }}"


def test_the_seed_decides(tmp_path: Path) -> None:
    first, same, other = (
        write_tiny_gguf(tmp_path / f"{index}.gguf", tensor_type="Q4_K", seed=seed, n_layers=1)
        for index, seed in enumerate((1, 1, 2))
    )
    assert first.read_bytes() == same.read_bytes() != other.read_bytes()


IMPOSSIBLE: list[tuple[type[Exception], dict[str, Any], str]] = [
    (TypeError, {"n_layer": 2}, "unknown shape keyword 'n_layer'; known are"),
    (
        ValueError,
        {"arch": "bert"},
        "arch: expected one of llama, .*, qwen3moe, got 'bert'",
    ),
    (ValueError, {"tensor_type": "Q9"}, "tensor_type: expected one of F32, .*, got 'Q9'"),
    (ValueError, {"tokenizer": "wpm"}, "tokenizer: expected one of spm, bpe, got 'wpm'"),
    (ValueError, {"vocab_size": 10}, "vocab_size: expected at least 3.., got 10"),
    (ValueError, {"n_embd": 66}, "n_embd 66 is no multiple of n_heads 4"),
    (ValueError, {"n_kv_heads": 3}, "n_heads 4 is no multiple of n_kv_heads 3"),
    (ValueError, {"rope_dim": 18}, "rope_dim 18: expected an even number up to head_dim 16"),
    (ValueError, {"tensor_type": "Q8_0", "n_ff": 100}, "n_ff 100 is no multiple of Q8_0's block"),
    (ValueError, {"tensor_type": "Q4_K", "n_embd": 64}, "n_embd 64 is no multiple of Q4_K's"),
    (ValueError, {"tensor_type": "Q4_K", "head_dim": 32}, "q_dim 128 is no multiple of Q4_K's"),
    (ValueError, {"rope_scaling": {"kind": "yarn"}}, "rope_scaling: unknown key 'kind'"),
]


@pytest.mark.parametrize(("kind", "keywords", "text"), IMPOSSIBLE)
def test_impossible_models_are_refused(
    tmp_path: Path, kind: type[Exception], keywords: dict[str, Any], text: str
) -> None:
    with pytest.raises(kind, match=text):
        write_tiny_gguf(tmp_path / "tiny.gguf", **keywords)
    assert not (tmp_path / "tiny.gguf").exists()
