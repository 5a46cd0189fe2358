"""HParams: what files say, what is assumed where they are silent, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from m40llm.errors import ModelFileError, UnsupportedModelError
from m40llm.gguf import open_gguf
from m40llm.model.hparams import HParams
from m40llm.model.rope_params import RopeParams
from m40llm.testing import build_gguf_bytes, write_tiny_gguf

PATH = Path("tiny.gguf")


@pytest.fixture
def read(tmp_path: Path) -> Any:
    """Writes a tiny model with these keywords and reads its hyper-parameters."""

    def write_and_read(arch: str = "llama", **shape: Any) -> HParams:
        path = write_tiny_gguf(tmp_path / PATH, arch=arch, **shape)
        with open_gguf(path) as file:
            return HParams.from_gguf(file)

    return write_and_read


def test_what_a_plain_file_says(read: Any) -> None:
    assert read(n_layers=3, vocab_size=400) == HParams(
        arch="llama",
        context_length=128,
        vocab_size=400,
        n_layers=3,
        n_embd=64,
        n_ff=128,
        n_heads=4,
        n_kv_heads=2,
        head_dim=16,
        norm_eps=pytest.approx(1e-5, rel=2**-24),
        rope=RopeParams(rope_dim=16, original_context_length=128),
        sliding_window=None,
    )


def test_derived_sizes(read: Any) -> None:
    hparams = read(n_heads=8, n_kv_heads=2, head_dim=24, n_embd=64)
    assert hparams.head_dim == hparams.value_length == 24
    assert (hparams.group_size, hparams.q_dim, hparams.kv_dim) == (4, 192, 48)


def test_every_architecture_has_its_prefix(read: Any) -> None:
    for arch, name in {"llama": "llama", "mistral": "llama", "qwen2": "qwen2"}.items():
        assert read(arch).arch == name


def test_silent_files_get_llama_cpps_defaults(read: Any) -> None:
    absent = ("attention.head_count_kv", "rope.freq_base", "rope.dimension_count")
    hparams = read(n_kv_heads=4, metadata={f"llama.{key}": None for key in absent})
    assert hparams.n_kv_heads == 4
    assert hparams.rope == RopeParams(rope_dim=16, theta=10000.0, original_context_length=128)


def test_one_number_a_layer_if_all_are_equal(read: Any) -> None:
    key = "llama.attention.head_count"
    assert read(metadata={key: [4, 4]}).n_heads == 4
    with pytest.raises(UnsupportedModelError, match=r"head_count': .* in every layer, got 2 to 4"):
        read(metadata={key: [4, 2]})
    with pytest.raises(ModelFileError, match="a number or 2 of them, one a layer, got 3"):
        read(metadata={key: [4, 4, 4]})
    with pytest.raises(ModelFileError, match="expected integers from 1 to 4096, got 0 to 4"):
        read(metadata={key: [0, 4]})


def test_a_vocabulary_size_without_a_vocabulary(read: Any) -> None:
    tokens = "tokenizer.ggml.tokens"
    assert read(metadata={tokens: None, "llama.vocab_size": 77}).vocab_size == 77
    with pytest.raises(ModelFileError, match=r"'llama.vocab_size': .* the key is missing"):
        read(metadata={tokens: None})
    with pytest.raises(
        ModelFileError, match=r"tokens': expected an array of strings, got string '<s>'"
    ):
        read(metadata={tokens: "<s>"})
    with pytest.raises(ModelFileError, match="an array of strings, got array of 2 int32"):
        read(metadata={tokens: [1, 2]})


def test_layer_norm_architectures_have_their_own_epsilon(read: Any) -> None:
    keys = {"llama.attention.layer_norm_rms_epsilon": None}
    assert read(metadata=keys | {"llama.attention.layer_norm_epsilon": 0.25}).norm_eps == 0.25
    with pytest.raises(ModelFileError, match=r"layer_norm_rms_epsilon': .* the key is missing"):
        read(metadata=keys)


def test_sliding_window(read: Any) -> None:
    key = "llama.attention.sliding_window"
    assert read(metadata={key: 4096}).sliding_window == 4096
    assert read(metadata={key: 0}).sliding_window is None


def test_soft_caps(read: Any) -> None:
    """0 says that there is none; a silent file leaves it to the architecture."""
    keys = ("llama.attn_logit_softcapping", "llama.final_logit_softcapping")
    assert (read().attn_softcap, read().logit_softcap) == (None, None)
    hparams = read(metadata=dict(zip(keys, (50.0, 0.0), strict=True)))
    assert (hparams.attn_softcap, hparams.logit_softcap) == (50.0, 0.0)


def test_rope_scaling_as_the_file_says(read: Any) -> None:
    yarn = {
        "type": "yarn",
        "factor": 4.0,
        "original_context_length": 32,
        "attn_factor": 0.5,
        "yarn_beta_fast": 16.0,
        "yarn_beta_slow": 2.0,
        "yarn_log_multiplier": 0.125,
    }
    assert read(rope_scaling=yarn).rope == RopeParams(
        rope_dim=16,
        scaling="yarn",
        factor=4.0,
        original_context_length=32,
        attn_factor=0.5,
        ext_factor=1.0,
        beta_fast=16.0,
        beta_slow=2.0,
        yarn_log_multiplier=0.125,
    )
    assert read(rope_scaling=yarn | {"yarn_ext_factor": 0.0}).rope.ext_factor == 0.0
    assert read(rope_scaling=yarn | {"yarn_ext_factor": -1.0}).rope.ext_factor == 1.0


@pytest.mark.parametrize(
    ("keys", "scaling", "factor"),
    [
        ({"llama.rope.scaling.factor": 2.0}, "linear", 2.0),
        ({"llama.rope.scale_linear": 2.0}, "linear", 2.0),
        ({"llama.rope.scale_linear": 3.0, "llama.rope.scaling.factor": 2.0}, "linear", 2.0),
        ({"llama.rope.scaling.factor": 0.0}, "none", 1.0),
        ({"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 2.0}, "none", 1.0),
        ({"llama.rope.scaling.type": "longrope"}, "longrope", 1.0),
        ({"llama.rope.scaling.type": "llama3", "llama.rope.scaling.factor": 8.0}, "llama3", 8.0),
    ],
)
def test_rope_scaling_half_said(
    read: Any, keys: dict[str, Any], scaling: str, factor: float
) -> None:
    rope = read(metadata=keys).rope
    assert (rope.scaling, rope.factor) == (scaling, factor)


def test_unknown_rope_scaling_is_unsupported(read: Any) -> None:
    with pytest.raises(UnsupportedModelError, match=r"scaling.type': .* none, linear, .*'dynamic'"):
        read(rope_scaling={"type": "dynamic"})


NAN = float("nan")
REFUSED = {
    "context_length": [0, -1, 2**27, 1.5, "128", None, [128], True],
    "block_count": [0, 2**13, -2, "2", None],
    "embedding_length": [0, 2**19, 66, None],
    "feed_forward_length": [0, 2**21, None, NAN],
    "attention.head_count": [0, 3, 8192, None, "4"],
    "attention.head_count_kv": [0, 3, 8, 8192],
    "attention.key_length": [0, 4096, "16"],
    "attention.value_length": [0, 4096],
    "attention.layer_norm_rms_epsilon": [0.0, 1.0, -1e-5, NAN, float("inf"), "1e-5"],
    "attention.sliding_window": [-1, "all"],
    "attn_logit_softcapping": [-50.0, 1e-6, 1e9, NAN, float("inf"), "50"],
    "final_logit_softcapping": [-30.0, 1e-6, 1e9, NAN],
    "rope.dimension_count": [0, 15, 18, -2, 16.0],
    "rope.freq_base": [0.0, 1.0, -1e4, NAN, float("inf"), 1e30, "10000"],
    "rope.scaling.factor": [-2.0, 1e-6, NAN, 1e9],
    "rope.scaling.yarn_beta_slow": [0.0, NAN],
    "rope.scaling.attn_factor": [NAN, -1.0],
    "rope.scaling.original_context_length": [0, 2**27],
    "rope.scaling.type": [1, ["yarn"]],
}
CASES = [(key, value) for key, values in REFUSED.items() for value in values]


@pytest.mark.parametrize(("key", "value"), CASES, ids=[f"{key}={value}" for key, value in CASES])
def test_absurd_numbers_are_refused_by_key(read: Any, key: str, value: Any) -> None:
    with pytest.raises(ModelFileError, match=r"tiny\.gguf: key 'llama\..*: expected .*, got "):
        read(metadata={f"llama.{key}": value})


def test_value_heads_of_another_width_are_unsupported(read: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="value heads as wide as key heads, 16, got 8"):
        read(metadata={"llama.attention.value_length": 8})


def test_the_architecture_must_be_named(tmp_path: Path) -> None:
    path = tmp_path / PATH
    path.write_bytes(build_gguf_bytes())
    with open_gguf(path) as file, pytest.raises(ModelFileError, match=r"general.architecture"):
        HParams.from_gguf(file)


def test_experts(tmp_path: Path) -> None:
    """An expert's own width where the file gives one."""
    keys = {"qwen3moe.expert_feed_forward_length": 128, "qwen3moe.feed_forward_length": 4096}
    path = write_tiny_gguf(tmp_path / "t.gguf", arch="qwen3moe", n_experts_used=3, metadata=keys)
    with open_gguf(path) as file:
        hp = HParams.from_gguf(file)
    assert (hp.n_experts, hp.n_experts_used, hp.n_ff) == (8, 3, 128)


@pytest.mark.parametrize("used", [0, 9])
def test_more_experts_used_than_there_are(used: int, tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "t.gguf", arch="mixtral", n_experts_used=used)
    with open_gguf(path) as file, pytest.raises(ModelFileError, match="expert_used_count"):
        HParams.from_gguf(file)
