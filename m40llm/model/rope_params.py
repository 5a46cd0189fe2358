"""What a file says of RoPE, checked."""

from dataclasses import dataclass
from typing import Literal, TypeVar, cast, get_args

from m40llm.errors import UnsupportedModelError
from m40llm.gguf import Metadata
from m40llm.gguf.cursor import shown

MAX_CONTEXT = 2**26  # 10 million tokens in Llama 4 Scout
MAX_FACTOR = 1e6  # of RoPE's scaling numbers: the context grows no more than that
MIN_FACTOR = 1e-3  # of those that RoPE divides by
MIN_THETA = 1.5  # at 1 all pairs turn alike, and YaRN divides by the logarithm
MAX_THETA = 1e12  # 10 million in the models with the longest contexts

Default = TypeVar("Default", float, None)
RopeScaling = Literal["none", "linear", "yarn", "llama3", "longrope"]


@dataclass(frozen=True)
class RopeParams:
    """Rotary position embedding: the first `rope_dim` of a head's dimensions turn with `pos`.

    Dimension pair p turns by pos * theta^(-2 p / rope_dim), before `scaling` changes that.
    llama.cpp has no "llama3": its converter writes a tensor `rope_freqs.weight` instead, with
    scaling "none"; the name is taken for files of other writers.
    """

    rope_dim: int  # even, at most head_dim
    theta: float = 10000.0
    scaling: RopeScaling = "none"
    factor: float = 1.0  # how many times the original context was stretched
    original_context_length: int = 2048
    attn_factor: float = 1.0  # multiplies the cosines and sines
    ext_factor: float = 0.0  # yarn: share of extrapolation; 1 in yarn files that do not say
    beta_fast: float = 32.0  # yarn: full turns from which a pair is left as it was
    beta_slow: float = 1.0  # yarn: full turns up to which a pair is stretched by `factor`
    yarn_attn_factor: float = 1.0  # llama.cpp replaces it by a function of `factor`
    yarn_log_multiplier: float = 0.0  # 0: not given
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3


def divisor(metadata: Metadata, key: str, default: Default) -> float | Default:
    """What can be divided by, or 0; `default` where the file does not say."""
    if key not in metadata:
        return default
    number = metadata.get_float(key, minimum=0.0, maximum=MAX_FACTOR)
    if 0.0 < number < MIN_FACTOR:
        metadata.refuse(key, f"0 or a number of at least {MIN_FACTOR}", f"{number:g}")
    return number


def read_rope(metadata: Metadata, arch: str, head_dim: int, context_length: int) -> RopeParams:
    """ModelFileError for a number beyond its limits, UnsupportedModelError for an unknown type."""
    prefix = f"{arch}.rope.scaling"
    factor = _scaling_factor(metadata, arch)
    scaling = _scaling_type(metadata, arch, factor)

    def number(name: str, default: float, *, minimum: float = 0.0) -> float:
        return metadata.get_float(f"{prefix}.{name}", default, minimum=minimum, maximum=MAX_FACTOR)

    ext_factor = number("yarn_ext_factor", -1.0, minimum=-1.0)
    if ext_factor < 0.0:  # llama.cpp's way of saying "not set"
        ext_factor = 1.0 if scaling == "yarn" else 0.0
    return RopeParams(
        rope_dim=_rope_dim(metadata, arch, head_dim),
        theta=metadata.get_float(
            f"{arch}.rope.freq_base", 10000.0, minimum=MIN_THETA, maximum=MAX_THETA
        ),
        scaling=scaling,
        factor=1.0 if scaling == "none" else factor,
        original_context_length=metadata.get_int(
            f"{prefix}.original_context_length", context_length, minimum=1, maximum=MAX_CONTEXT
        ),
        attn_factor=number("attn_factor", 1.0),
        ext_factor=ext_factor,
        beta_fast=number("yarn_beta_fast", 32.0, minimum=MIN_FACTOR),
        beta_slow=number("yarn_beta_slow", 1.0, minimum=MIN_FACTOR),
        yarn_attn_factor=number("yarn_attn_factor", 1.0),
        yarn_log_multiplier=number("yarn_log_multiplier", 0.0),
        low_freq_factor=number("low_freq_factor", 1.0),
        high_freq_factor=number("high_freq_factor", 4.0),
    )


def _rope_dim(metadata: Metadata, arch: str, head_dim: int) -> int:
    key = f"{arch}.rope.dimension_count"
    rope_dim = metadata.get_int(key, head_dim)
    if rope_dim % 2 or not 2 <= rope_dim <= head_dim:
        metadata.refuse(key, f"an even number from 2 to the head's {head_dim}", f"{rope_dim}")
    return rope_dim


def _scaling_factor(metadata: Metadata, arch: str) -> float:
    """`rope.scaling.factor`, or its older name; 0 and absent mean 1."""
    key = f"{arch}.rope.scaling.factor"
    if key not in metadata:
        key = f"{arch}.rope.scale_linear"
    return divisor(metadata, key, 0.0) or 1.0


def _scaling_type(metadata: Metadata, arch: str, factor: float) -> RopeScaling:
    """What the file says; where it says nothing, a factor alone means linear (llama.cpp)."""
    key = f"{arch}.rope.scaling.type"
    name = metadata.get_str(key, "none" if factor == 1.0 else "linear")
    if name not in get_args(RopeScaling):
        wanted = f"one of {', '.join(get_args(RopeScaling))}"
        metadata.refuse(key, wanted, shown(name), UnsupportedModelError)
    return cast(RopeScaling, name)
