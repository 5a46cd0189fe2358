"""Which sites, positions and heads are meant: checked before anything runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m40llm.errors import RequestError
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


def positions(at: At, n_tokens: int | None) -> Ints:
    """The positions that are meant, of so many; None: of a text that is still being written."""
    if at is None:
        at = slice(None)
    if isinstance(at, slice):
        if n_tokens is None:
            raise RequestError(f"at: expected positions while text is generated, got {at}")
        return np.arange(n_tokens)[at]
    wanted = np.atleast_1d(np.asarray(at))
    if wanted.size == 0 or wanted.ndim != 1 or not np.issubdtype(wanted.dtype, np.integer):
        raise RequestError(f"at: expected a position, a slice or several positions, got {at!r}")
    lowest, end = (0, None) if n_tokens is None else (-n_tokens, n_tokens)
    if wanted.min() < lowest or (end is not None and wanted.max() >= end):
        expected = "0 or above" if end is None else f"{lowest} to {end - 1}"
        raise RequestError(f"at: expected {expected}, got {at!r}")
    return np.where(wanted < 0, wanted + (n_tokens or 0), wanted).astype(np.int64)


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
    wanted = np.atleast_1d(np.asarray(heads))
    for site in sites:
        name = site.rpartition(".")[2]
        if name not in (*_OF_HEADS, *_OF_KV_HEADS):
            raise RequestError(f"head: {site} has no heads; {', '.join(_OF_HEADS)}, k and v have")
        n = hp.n_heads if name in _OF_HEADS else hp.n_kv_heads
        is_whole = np.issubdtype(wanted.dtype, np.integer) and wanted.ndim == 1 and wanted.size
        if not is_whole or wanted.min() < 0 or wanted.max() >= n:
            raise RequestError(f"head: expected 0 to {n - 1} at {site}, got {heads!r}")
    return tuple(wanted.tolist())
