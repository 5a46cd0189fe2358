"""Launches: which launch wrapper each op of a card calls, so that one can be put in its place.

The wrappers are those of m40llm/kernels, whose contracts are theirs to keep. Over a cache in q8_0,
and of products with experts, ours stay.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Final

from m40llm.kernels.add_rows import add_rows
from m40llm.kernels.attention_decode import attention_decode
from m40llm.kernels.attention_prefill import attention_prefill
from m40llm.kernels.choose_experts import choose_experts
from m40llm.kernels.embedding import embedding, take_rows
from m40llm.kernels.gemm import gemm
from m40llm.kernels.gemv import gemv
from m40llm.kernels.rms_norm import rms_norm, rms_norm_heads
from m40llm.kernels.rope import rope_append
from m40llm.kernels.scale import add_scaled, scale
from m40llm.kernels.softcap import softcap
from m40llm.kernels.swiglu import geglu, swiglu

Launch = Callable[..., Any]

_ALL = (
    *(add_rows, add_scaled, attention_decode, attention_prefill, choose_experts, embedding),
    *(geglu, gemm, gemv, rms_norm, rms_norm_heads, rope_append, scale, softcap, swiglu, take_rows),
)
OURS: Final[dict[str, Launch]] = {launch.__name__: launch for launch in _ALL}


class Launches(SimpleNamespace):
    """OURS by name, but for those that were put in their place."""

    def __init__(self, **instead: Launch) -> None:
        super().__init__(**OURS | instead)

    @property
    def is_ours(self) -> bool:
        """Whether none was."""
        return all(getattr(self, name) is launch for name, launch in OURS.items())
