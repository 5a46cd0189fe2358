"""Pictures of what research finds: matplotlib figures, saved as PNG and SVG beside one another.

Needs matplotlib: pip install "m40llm[research]".
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m40llm.errors import RequestError
from m40llm.pictures import new_figure, save
from m40llm.research.lens import Lens
from m40llm.research.patching import Patching

__all__ = ["attention_map", "lens_grid", "nll_strip", "patching_grid", "save"]

_CELL, _LEAST = 0.62, 3.2  # inches: of a cell, and of a picture's side
_MOST_TOKENS = 64


def attention_map(pattern: NDArray[Any], tokens: Sequence[str], title: str = "") -> Any:
    """A head's pattern as a heat map: who looks (rows) at whom (columns)   [t, t]"""
    shape = np.shape(pattern)
    if len(shape) != 2 or shape[0] != shape[1]:
        raise RequestError(f"pattern: expected one head's, [t, t], got {list(shape)}")
    n = _checked(tokens, shape)
    fig, axes = _figure(n, n, title)
    image = axes.imshow(pattern, cmap="Blues", vmin=0, vmax=1)
    _label(axes, tokens, tokens)
    axes.set(xlabel="looked at", ylabel="looks")
    fig.colorbar(image, ax=axes, shrink=0.7)
    return fig


def lens_grid(lens: Lens) -> Any:
    """The likeliest token behind each layer (rows, the last above) at each position, and how likely
    it is."""
    n = _checked(lens.tokens, lens.positions.shape)
    fig, axes = _figure(1.6 * n, 0.55 * len(lens.sites), "Logit lens: the likeliest next token")
    p = np.exp(lens.top_logprobs[::-1, :, 0])
    image = axes.imshow(p, cmap="YlGnBu", vmin=0, vmax=1, aspect="auto")
    for (row, column), share in np.ndenumerate(p):
        piece, colour = lens.pieces[-1 - row][column][0], "white" if share > 0.6 else "black"
        axes.text(column, row, _shown(piece), ha="center", va="center", fontsize=7, color=colour)
    _label(axes, lens.tokens, lens.sites[::-1])
    fig.colorbar(image, ax=axes, label="probability")
    return fig


def patching_grid(found: Patching) -> Any:
    """Effect of each site (rows) and position: 0 as the corrupted prompt, 1 as the clean one."""
    n = _checked(found.tokens, found.effects.shape)
    fig, axes = _figure(
        1.2 * n, 0.55 * len(found.sites), "Patching: how much of the answer returns"
    )
    image = axes.imshow(found.effects, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
    _label(axes, found.tokens, found.sites)
    fig.colorbar(image, ax=axes)
    return fig


def nll_strip(values: NDArray[Any], tokens: Sequence[str]) -> Any:
    """What each token costs, in nats, a bar a token   values: of measures.nll; tokens: all"""
    _checked(tokens[1:], values.shape)
    fig, axes = _figure(len(tokens), 4, "Negative log-likelihood of each token")
    axes.bar(range(len(values)), values)
    axes.set_xticks(range(len(values)), map(_shown, tokens[1:]), rotation=90, fontsize=8)
    axes.set_ylabel("nats")
    axes.margins(x=0.01)
    return fig


def _figure(width: float, height: float, title: str) -> tuple[Any, Any]:
    """Of so many cells."""
    size = (max(_LEAST, _CELL * width + 2), max(_LEAST, _CELL * height + 1.5))
    fig = new_figure("plots", size)
    axes = fig.subplots()
    axes.set_title(title, fontsize=10)
    return fig, axes


def _label(axes: Any, columns: Sequence[str], rows: Sequence[str]) -> None:
    axes.set_xticks(range(len(columns)), map(_shown, columns), rotation=90, fontsize=8)
    axes.set_yticks(range(len(rows)), map(_shown, rows), fontsize=8)


def _shown(token: str) -> str:
    """Without what matplotlib would take for mathematics; spaces and control characters to see."""
    seen = token.replace(" ", "\u00b7").replace("$", r"\$")
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in seen)


def _checked(tokens: Sequence[str], shape: tuple[int, ...]) -> int:
    """How many tokens. RequestError where there is not one for each column, or too many."""
    n = len(tokens)
    if n != shape[-1]:
        raise RequestError(f"tokens: expected {shape[-1]}, got {n}")
    if n > _MOST_TOKENS:
        raise RequestError(f"tokens: {n} are too many for a picture; at most {_MOST_TOKENS}")
    return n
