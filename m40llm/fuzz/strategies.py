"""Hypothesis strategies for what breaks kernels: sizes at the edges of blocks, ragged batches.

    n=sizes(64)            1, 2, 63, 64, 65, 127, ... and all between, up to four blocks and some
    n=widths(32, 8)        multiples of 32, up to 8 of them
    lens=lengths(64, 3)    lengths of 1 to 3 sequences, as `sizes` has them
    on=flags()             True or False
    seed=seeds()           contents, for the functions of contents.py
    schedule=schedules()   the order of threads; every case has one already

Values are numbers, strings, and tuples of them, so that a case prints as Python. What is first in
an order is what shrinking goes for: small sizes, False, seed 0.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from m40llm.errors import DeviceError

try:
    from hypothesis import strategies as st
    from hypothesis.strategies import SearchStrategy
except ImportError as error:
    raise DeviceError(
        f"fuzzing: {error}; it needs pip install 'hypothesis>=6.100' (the extra `fuzz`)"
    ) from None

T = TypeVar("T")
N_BLOCKS = 4  # of which `sizes` passes the edges: more blocks than run at once, in any order


def is_strategy(value: object) -> bool:
    """Whether it is something to draw from, of ours or any of Hypothesis'."""
    return isinstance(value, SearchStrategy)


def sizes(block: int, most: int | None = None) -> SearchStrategy[int]:
    """Sizes from 1 to `most` (four blocks and some), half of them within 2 of a block's edge."""
    limit = most or N_BLOCKS * block + block // 2 + 2
    near = (n * block + off for n in range(limit // block + 1) for off in (-2, -1, 0, 1, 2))
    edges = sorted({1, 2, 3, 5, *near} & set(range(1, limit + 1)))
    return st.one_of(st.integers(1, limit), st.sampled_from(edges))


def widths(unit: int, most: int) -> SearchStrategy[int]:
    """Multiples of `unit`, from 1 to `most` of them."""
    return st.integers(1, most).map(lambda n: n * unit)


def lengths(block: int, most_sequences: int, most: int | None = None) -> Any:
    """A ragged batch: the lengths of 1 to `most_sequences` sequences, a tuple."""
    return st.lists(sizes(block, most), min_size=1, max_size=most_sequences).map(tuple)


def choices(values: Sequence[T]) -> SearchStrategy[T]:
    """One of these, the first the simplest: for what a kernel is compiled for."""
    return st.sampled_from(values)


def flags() -> SearchStrategy[bool]:
    """False or True."""
    return st.booleans()


def seeds() -> SearchStrategy[int]:
    """What an array's contents are drawn from: np.random.default_rng(seed)."""
    return st.integers(0, 2**32 - 1)


def schedules() -> SearchStrategy[int]:
    """Which order the threads take: a seed of the emulator's."""
    return st.integers(0, 2**16 - 1)


def cases(draws: Mapping[str, SearchStrategy[Any]]) -> SearchStrategy[dict[str, Any]]:
    """A whole case: each argument as its strategy draws it."""
    return st.fixed_dictionaries(dict(draws))
