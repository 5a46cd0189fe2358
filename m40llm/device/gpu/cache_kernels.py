"""Which kernels append to a KV cache and attend over it: those of the type that it is held in."""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from m40llm.device.gpu.launches import Launches
from m40llm.device.ops import Cache, Q8Cache
from m40llm.kernels.attention_decode import attention_decode_q8
from m40llm.kernels.attention_prefill import attention_prefill_q8
from m40llm.kernels.rope_append_q8 import rope_append_q8


class CacheKernels(NamedTuple):
    """Each takes the arrays of the cache in the same place."""

    append: Callable[..., None]
    decode: Callable[..., None]
    prefill: Callable[..., None]


_Q8: Final = CacheKernels(rope_append_q8, attention_decode_q8, attention_prefill_q8)


def in_type(k: Cache, v: Cache, launches: Launches) -> tuple[tuple[Any, ...], CacheKernels]:
    """The arrays of keys and values as kernels take them, and the kernels."""
    if isinstance(k, Q8Cache):
        return (k.quants, k.scales, v.quants, v.scales), _Q8
    ours = launches.rope_append, launches.attention_decode, launches.attention_prefill
    return (k, v), CacheKernels(*ours)
