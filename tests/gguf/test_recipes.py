"""Which type each tensor gets: every matrix the same, llama.cpp's mixtures, what does not fit."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as GGMLType

from m40llm.errors import RequestError
from m40llm.gguf import open_gguf
from m40llm.gguf.directory import TensorInfo
from m40llm.gguf.recipes import recipe_of, recipes

PLAIN = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4"]
K_NAMES = ["Q4_K", "Q5_K", "Q6_K"]
MIXTURES = ["Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M"]
# Layers of 32 that Q4_K_M and Q5_K_M give Q6_K: the first four, the last four, each third between.
MORE = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
ROLES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def tensor(name: str, *shape: int, type: GGMLType = GGMLType.F32) -> TensorInfo:
    return TensorInfo(name, type, shape, offset=0)


def model(n_layers: int, *names: str, n_cols: int = 256) -> dict[str, TensorInfo]:
    roles = [f"blk.{layer}.{role}.weight" for layer in range(n_layers) for role in ROLES]
    return {name: tensor(name, 256, n_cols) for name in ("token_embd.weight", *names, *roles)}


def types(
    name: str, tensors: Mapping[str, TensorInfo], n_layers: int = 32, n_experts: int = 0
) -> dict[str, str]:
    found = recipe_of(name).types(tensors, n_layers, n_experts)
    return {tensor: new.name for tensor, (new, _) in found.items()}


def layers_of(found: Mapping[str, str], role: str, type: str) -> list[int]:
    return [i for i in range(32) if found[f"blk.{i}.{role}.weight"] == type]


def test_the_recipes() -> None:
    assert sorted(recipes()) == sorted([*PLAIN, *K_NAMES, *MIXTURES, "COPY"])


@pytest.mark.parametrize("name", ["Q3_K", "q9", "", "IQ2_XXS", "Q4_K_L"])
def test_one_that_cannot_be_written_is_refused_with_the_list(name: str) -> None:
    with pytest.raises(RequestError, match=r"expected one of F32, F16, .*Q4_K_M"):
        recipe_of(name)


@pytest.mark.parametrize(("name", "base"), [("Q4_K_M", "Q4_K"), ("Q5_K_M", "Q5_K")])
def test_the_mixtures_of_medium_size(name: str, base: str) -> None:
    found = types(name, model(32, "output.weight"))
    assert layers_of(found, "attn_v", "Q6_K") == layers_of(found, "ffn_down", "Q6_K") == MORE
    assert found.pop("output.weight") == "Q6_K"
    assert set(found.values()) == {base, "Q6_K"}
    assert list(found.values()).count("Q6_K") == 2 * len(MORE)


def test_the_small_mixtures() -> None:
    found = types("Q4_K_S", model(32, "output.weight"))
    assert layers_of(found, "attn_v", "Q5_K") == [0, 1, 2, 3]
    assert layers_of(found, "ffn_down", "Q5_K") == [0, 1, 2, 3]
    assert list(found.values()).count("Q5_K") == 8
    found = types("Q5_K_S", model(32, "output.weight"))
    assert found.pop("output.weight") == "Q6_K"
    assert set(found.values()) == {"Q5_K"}


def test_an_embedding_that_is_the_output_too() -> None:
    assert types("Q4_K_M", model(2), 2)["token_embd.weight"] == "Q6_K"
    assert types("Q4_K_M", model(2, "output.weight"), 2)["token_embd.weight"] == "Q4_K"


def test_few_experts_and_fused_and_many_layers() -> None:
    of_few = types("Q4_K_M", model(32), n_experts=8)
    assert layers_of(of_few, "attn_k", "Q8_0") == layers_of(of_few, "attn_v", "Q8_0")
    assert len(layers_of(of_few, "attn_output", "Q5_K")) == 32
    assert "Q8_0" not in types("Q4_K_M", model(32), n_experts=128).values()
    fused = {"blk.0.attn_qkv.weight": tensor("blk.0.attn_qkv.weight", 256, 256)}
    assert types("Q4_K_M", fused) == {"blk.0.attn_qkv.weight": "Q5_K"}
    assert types("Q5_K_M", fused) == {"blk.0.attn_qkv.weight": "Q6_K"}
    of_80 = types("Q4_K_M", model(80), n_layers=80)
    assert {of_80[f"blk.{i}.attn_v.weight"] for i in range(80)} == {"Q5_K", "Q6_K"}


def test_vectors_and_routers_stay() -> None:
    tensors = {
        name: tensor(name, *shape)
        for name, shape in {
            "blk.0.attn_norm.weight": (256,),
            "blk.0.ffn_gate_inp.weight": (8, 256),
            "blk.0.ffn_down_exps.weight": (8, 256, 256),
        }.items()
    }
    assert list(types("Q4_K", tensors).values()) == ["F32", "F32", "Q4_K"]
    assert list(types("Q4_K_M", tensors).values()) == ["F32", "F32", "Q6_K"]


@pytest.mark.parametrize(
    ("name", "fallback"),
    [
        *(("Q4_K", "Q5_0"), ("Q5_K", "Q5_1"), ("Q6_K", "Q8_0"), ("TQ1_0", "Q4_0")),
        *(("TQ2_0", "Q4_0"), ("Q8_0", "Q8_0"), ("Q4_K_M", "Q5_0")),
    ],
)
def test_rows_that_are_no_whole_blocks(name: str, fallback: str) -> None:
    """Blocks of 32 take their place, or F16, or what there was if that is smaller."""
    assert types(name, {"a.weight": tensor("a.weight", 8, 96)}) == {"a.weight": fallback}
    assert types(name, {"a.weight": tensor("a.weight", 8, 40)}) == {"a.weight": "F16"}
    smaller = tensor("a.weight", 8, 96, type=GGMLType.Q4_0)
    assert types(name, {"a.weight": smaller})["a.weight"] in ("Q4_0", name)


def test_copy_keeps_all() -> None:
    tensors = {"a.weight": tensor("a.weight", 8, 40, type=GGMLType.IQ2_XXS)}
    assert types("COPY", tensors) == {"a.weight": "IQ2_XXS"}
    assert recipe_of("copy").file_type is None


def test_gemma3_has_the_types_that_its_mixture_asks_for(gemma3: Path) -> None:
    """A real Q4_K_M file, whose rows of 640 weights need the fallbacks, too."""
    with open_gguf(gemma3) as file:
        had = {name: info.type for name, info in file.tensors.items()}
        as_f32 = {
            name: info if len(info.shape) < 2 else tensor(name, *info.shape)
            for name, info in file.tensors.items()
        }
    found = recipe_of("Q4_K_M").types(as_f32, n_layers=18, n_experts=0)
    assert {name: new for name, (new, _) in found.items()} == had
