"""cast against NumPy's own rounding, bit for bit."""

from typing import Any

import numpy as np

from m40llm import reference
from m40llm.fuzz.contents import assert_same_bits, floats
from m40llm.fuzz.definition import target
from m40llm.fuzz.strategies import flags, seeds, sizes
from m40llm.kernels import cast as kernels


def near_ties(rng: np.random.Generator, n: int) -> Any:
    """float32[n] on the boundary between two FP16, or one unit beside it."""
    half = rng.integers(0, 2**16, n, np.uint16).view(np.float16).astype(np.float32)
    nudge = rng.integers(-1, 2, n).astype(np.uint32) + np.uint32(0x1000)
    return (half.view(np.uint32) + nudge).view(np.float32)


@target(ops=kernels, n=sizes(1024, 2600), to_half=flags(), seed=seeds())
def cast(card: Any, ops: Any, n: int, to_half: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    if to_half:
        x = np.where(rng.random(n) < 0.5, floats(rng, n), near_ties(rng, n))
    else:
        x = rng.integers(0, 2**16, n, np.uint16).view(np.float16)
    expected = reference.cast(x)
    out = card.poisoned(n, expected.dtype)
    ops.cast(card.upload(x), out, stream=card)
    assert_same_bits(card.read(out), expected)
