"""Edits: what is changed at sites while a model runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from m40llm.errors import RequestError
from m40llm.model.batch import Batch
from m40llm.model.hparams import HParams
from m40llm.model.sites import Hooks, Memory
from m40llm.research.selection import (
    At,
    Heads,
    Ints,
    Selection,
    checked_heads,
    matching,
    numbers,
    positions,
)

Floats = NDArray[np.float32]
Change = Callable[[Floats, Ints, int | None], Floats]


@dataclass(frozen=True)
class Edit:
    """A change of the selected part of a site: [rows, ...], or [rows, heads, ...] of some heads.

    change  (that part, the how-manieth of the selected positions each row is, how many of these
            there are, as far as that is known) -> its new values
    """

    what: str
    selection: Selection
    change: Change

    def apply(self, site: str, values: Floats, pos: Ints, n_tokens: int | None) -> bool:
        """Changes the values in place; whether any were meant   pos: of the rows."""
        rows, which = self.selection.rows(pos, n_tokens)
        if not rows.size:
            return False
        heads = self.selection.heads
        index: Any = rows if heads is None else np.ix_(rows, np.array(heads))
        before = values[index]
        try:
            values[index] = self.change(before, which, self.selection.count(n_tokens))
        except _KindError as error:
            raise RequestError(
                f"{self.what} at {site}: expected a function that returns numbers, got {error}"
            ) from None
        except _ShapeError as error:
            raise RequestError(
                f"{self.what} at {site}: expected values of shape {list(before.shape)}, or what "
                f"broadcasts to it, got {error}"
            ) from None
        return True


class _ShapeError(Exception):
    """Values of this shape do not fit what is selected."""


class _KindError(Exception):
    """What a function has returned is no numbers."""


def _fitted(values: Floats, part: Floats, which: Ints, n_selected: int | None) -> Floats:
    """The values of a part's rows: all the same, or one of each selected position."""
    has_rows = values.ndim == part.ndim and len(values) > 1
    if has_rows and (which.max() >= len(values) or n_selected not in (None, len(values))):
        raise _ShapeError(list(values.shape))
    try:
        return np.broadcast_to(values[which] if has_rows else values, part.shape)
    except ValueError:
        raise _ShapeError(list(values.shape)) from None


def _returned(values: ArrayLike, part: Floats) -> Floats:
    """What a function of the caller's has made of a part."""
    try:
        made = numbers(values)
    except ValueError:
        raise _KindError(repr(values)) from None
    try:
        return np.broadcast_to(made, part.shape)
    except ValueError:
        raise _ShapeError(list(made.shape)) from None


class Edits:
    """A list of changes, made in the order in which they were added, to each forward pass.

    Each takes the name of a site, or a glob of several; `at` positions (an int, a slice or several;
    from 0, in a trace also from behind; None: all) and, at sites that have heads, `head` one or
    several of these. Values are float32[...] of what is selected, with rows or without: what has
    no rows is the same at each position. Methods return the list itself.
    """

    def __init__(self, sites: Sequence[str], hp: HParams) -> None:
        self._sites, self._hp = sites, hp
        self._of_site: dict[str, list[Edit]] = {}
        self._n_tokens: int | None = None  # of the prompt; None: the text is being written
        self._pos = np.zeros(0, np.int32)
        self.is_over = False  # what is said now, no pass would hear

    def replace(self, site: str, values: ArrayLike, *, head: Heads = None, at: At = None) -> Self:
        """Values in the place of what is computed there."""
        new = _checked_values("replace", values)
        return self._add("replace", site, lambda *of: _fitted(new, *of), head, at)

    def add(self, site: str, values: ArrayLike, *, head: Heads = None, at: At = None) -> Self:
        """Values, a vector for instance, beside what is computed there."""
        more = _checked_values("add", values)
        return self._add("add", site, lambda x, *of: x + _fitted(more, x, *of), head, at)

    def scale(self, site: str, factor: float, *, head: Heads = None, at: At = None) -> Self:
        """So many times what is computed there; 0 takes it out."""
        times = _checked_values("scale", factor)
        return self._add("scale", site, lambda x, *of: x * _fitted(times, x, *of), head, at)

    def ablate(
        self, site: str, mean: ArrayLike | None = None, *, head: Heads = None, at: At = None
    ) -> Self:
        """What is there becomes nothing: 0, or the mean of it over other texts."""
        return self.replace(site, 0.0 if mean is None else mean, head=head, at=at)

    def change(
        self,
        site: str,
        function: Callable[[Floats], ArrayLike],
        *,
        head: Heads = None,
        at: At = None,
    ) -> Self:
        """function(float32[rows, ...], or [rows, heads, ...] of the heads asked for) -> the same
        shape, or what broadcasts to it."""
        if not callable(function):
            raise RequestError(f"change: expected a function, got {function!r}")
        return self._add("change", site, lambda x, *_: _returned(function(x), x), head, at)

    def _add(
        self,
        what: str,
        site: str,
        change: Change,
        head: Heads,
        at: At,
    ) -> Self:
        self._check_open(what)
        found = matching(site, self._sites)
        selection = Selection(at, checked_heads(head, found, self._hp))
        if at is not None and not self._is_for_prompts():
            positions(at, None)
        for name in found:
            self._of_site.setdefault(name, []).append(Edit(what, selection, change))
        return self

    def _check_open(self, what: str) -> None:
        if self.is_over:
            raise RequestError(f"{what}: the `with` block has ended; say it inside")

    def _is_for_prompts(self) -> bool:
        """Whether the number of tokens is known before a pass begins."""
        return False

    # -------------------------------------------------------- Hooks (model/sites.py)
    def begin(self, batch: Batch) -> None:
        self._pos = batch.pos

    def wants(self, site: str) -> bool:
        return site in self._of_site

    def visit(
        self, site: str, memory: Memory, buffer: Any, rows: NDArray[np.int32] | None = None
    ) -> None:
        self._edited(site, memory, buffer, self._pos if rows is None else self._pos[rows])

    def _edited(self, site: str, memory: Memory, buffer: Any, pos: NDArray[np.int32]) -> Floats:
        """The site's values with its changes, which are made in memory too."""
        values, is_changed = memory.read(buffer), False
        for edit in self._of_site.get(site, ()):
            is_changed |= edit.apply(site, values, pos, self._n_tokens)
        if is_changed:
            memory.write(buffer, values)
        return values


class Chain:
    """Several hooks as one: each sees what those before it have changed."""

    def __init__(self, hooks: Sequence[Hooks]) -> None:
        self._hooks = hooks

    def begin(self, batch: Batch) -> None:
        for each in self._hooks:
            each.begin(batch)

    def wants(self, site: str) -> bool:
        return any(each.wants(site) for each in self._hooks)

    def visit(
        self, site: str, memory: Memory, buffer: Any, rows: NDArray[np.int32] | None = None
    ) -> None:
        for each in self._hooks:
            if each.wants(site):
                each.visit(site, memory, buffer, rows)


def _checked_values(what: str, values: ArrayLike) -> Floats:
    try:
        return numbers(values)
    except ValueError as error:
        raise RequestError(f"{what}: {error}") from None
