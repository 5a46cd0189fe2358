"""Which sites, positions and heads are meant: checked before anything runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from m40llm.engine.scalars import is_whole
from m40llm.errors import RequestError
from m40llm.llm.arguments import is_many
from m40llm.model.hparams import HParams

At = int | slice | Sequence[int] | None  # positions; None: all
Heads = int | Sequence[int] | None
Ints = NDArray[np.integer[Any]]
_OF_HEADS = ("q", "q_norm", "scores", "pattern", "z")
_OF_KV_HEADS = ("k", "k_norm", "v")


@dataclass(frozen=True)
class Selection:
    """Part of what is at a site: of these positions, and of these heads (None: all)."""

    at: At = None
    heads: tuple[int, ...] | None = None

    def rows(self, pos: Ints, n_tokens: int | None) -> tuple[Ints, Ints]:
        """(which rows, of these positions, are meant; the how-manieth of the selected each is).

        Where the number of tokens is known, positions below 0 count from behind.
        """
        if self.at is None:
            return np.arange(pos.size), pos.astype(np.int64)
        wanted = positions(self.at, n_tokens)
        is_it = pos[:, None] == wanted  # [rows, selected]
        rows = np.flatnonzero(is_it.any(axis=1))
        return rows, is_it[rows].argmax(axis=1)

    def count(self, n_tokens: int | None) -> int | None:
        """How many positions are meant; None for all of a text that is still being written."""
        return n_tokens if self.at is None else positions(self.at, n_tokens).size


def positions(at: At, n_tokens: int | None) -> Ints:
    """The positions that are meant, of so many; None: of a text that is still being written."""
    if at is None:
        at = slice(None)
    if isinstance(at, slice):
        if n_tokens is None:
            raise RequestError(f"at: expected positions while text is generated, got {at}")
        return _sliced(at, n_tokens)
    wanted = _listed(at)
    if wanted.size == 0 or wanted.ndim != 1 or not np.issubdtype(wanted.dtype, np.integer):
        raise RequestError(f"at: expected a position, a slice or several positions, got {at!r}")
    lowest, end = (0, None) if n_tokens is None else (-n_tokens, n_tokens)
    if wanted.min() < lowest or (end is not None and wanted.max() >= end):
        expected = "0 or above" if end is None else f"{lowest} to {end - 1}"
        raise RequestError(f"at: expected {expected}, got {at!r}")
    return np.where(wanted < 0, wanted + (n_tokens or 0), wanted).astype(np.int64)


def _sliced(at: slice, n_tokens: int) -> Ints:
    try:
        found = np.arange(n_tokens)[at]
    except (TypeError, ValueError) as error:
        raise RequestError(f"at: {at} is no slice of positions: {error}") from None
    if not found.size:
        raise RequestError(f"at: {at} has none of the {n_tokens} positions")
    return found


def _listed(values: Any) -> NDArray[Any]:
    """One or several as an array of one dimension; what is no such list is an empty one."""
    try:
        return np.atleast_1d(np.asarray(values))
    except ValueError:  # lists of lists of several lengths
        return np.zeros(0)


def numbers(values: ArrayLike) -> NDArray[np.float32]:
    """A copy. ValueError for what is none: NumPy would make NaN of None."""
    try:
        given = np.asarray(values)
    except ValueError:  # lists of several lengths
        given = np.array(None)
    if given.dtype.kind not in "biuf":
        raise ValueError(f"expected numbers, got {values!r}")
    return given.astype(np.float32)


def check_single(prompt: Any) -> None:
    """RequestError for a list of prompts, where one is wanted."""
    if is_many(prompt):
        raise RequestError(f"prompt: expected a text or token ids, got a list of {len(prompt)}")


def check_position(at: Any) -> None:
    """RequestError for several positions, where one is wanted."""
    if not is_whole(at):
        raise RequestError(f"at: expected one position, got {at!r}")


def kept_positions(at: At, n_tokens: int) -> Ints:
    """The same, each once, in the order of the text: as a trace has them."""
    return np.unique(positions(at, n_tokens))


def matching(pattern: Any, sites: Sequence[str]) -> list[str]:
    """The sites that a name or glob means, in their order. RequestError where there is none."""
    if not isinstance(pattern, str):
        raise RequestError(f"site: expected a name or glob, got {pattern!r}")
    found = [site for site in sites if fnmatchcase(site, pattern)]
    if not found:
        kinds = dict.fromkeys(site.rpartition(".")[2] for site in sites)
        raise RequestError(
            f"site: {pattern!r} is none of this model's; llm.sites() lists them: "
            f"blk.0. to blk.N. with {', '.join(kinds)}"
        )
    return found


def checked_heads(heads: Heads, sites: Sequence[str], hp: HParams) -> tuple[int, ...] | None:
    """RequestError for heads of a site that has none, or that the model has not."""
    if heads is None:
        return None
    wanted = _listed(heads)
    for site in sites:
        name = site.rpartition(".")[2]
        if name not in (*_OF_HEADS, *_OF_KV_HEADS):
            raise RequestError(f"head: {site} has no heads; {', '.join(_OF_HEADS)}, k and v have")
        n = hp.n_heads if name in _OF_HEADS else hp.n_kv_heads
        is_whole = np.issubdtype(wanted.dtype, np.integer) and wanted.ndim == 1 and wanted.size
        if not is_whole or wanted.min() < 0 or wanted.max() >= n:
            raise RequestError(f"head: expected 0 to {n - 1} at {site}, got {heads!r}")
    return tuple(wanted.tolist())
