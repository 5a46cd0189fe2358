"""argmax against NumPy: ids by ==, ties, NaN and infinities included."""

from typing import Any

import numpy as np

from m40llm import reference
from m40llm.fuzz.contents import rough_logits
from m40llm.fuzz.definition import target
from m40llm.fuzz.strategies import choices, seeds, sizes
from m40llm.kernels import argmax as kernels

N_THREADS = 64  # of the 1024: all that matters happens in two warps, too
SPREADS = choices([0.0, 1.0, 30.0])


@target(ops=kernels, n_rows=sizes(2, 4), n=sizes(N_THREADS), spread=SPREADS, seed=seeds())
def argmax(card: Any, ops: Any, n_rows: int, n: int, spread: float, seed: int) -> None:
    x = rough_logits(seed, n_rows, n, spread)
    out = card.poisoned(n_rows, np.int32)
    ops.argmax(card.upload(x), out, stream=card, n_threads=N_THREADS)
    np.testing.assert_array_equal(card.read(out), reference.argmax(x))
