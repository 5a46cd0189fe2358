"""Trace: a forward pass over prompts, of which what was asked for is kept."""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from m40llm.engine.scalars import is_whole
from m40llm.errors import RequestError
from m40llm.model.hparams import HParams
from m40llm.model.sites import Memory
from m40llm.research import frames
from m40llm.research.edits import Edits, Floats
from m40llm.research.selection import At, Ints, Selection, kept_positions, matching, positions

Run = Callable[["Trace"], None]
_BEYOND = {"scores": -np.inf, "pattern": 0.0}  # at positions that no row of a piece has reached


class Trace(Edits):
    """What a model computes of prompts. Say inside the `with` what to keep and what to change; the
    pass runs where it ends, and then `trace[site]` has what was kept.

    prompts  each one's token ids

    Edits are made before a value is kept. Positions below 0 count from a prompt's end.
    """

    def __init__(
        self, sites: Sequence[str], hp: HParams, prompts: Sequence[Sequence[int]], run: Run
    ) -> None:
        super().__init__(sites, hp)
        self.prompts = [list(ids) for ids in prompts]
        self._run = run
        self._wanted: dict[str, Selection] = {}
        self._on_device: set[str] = set()
        self._pieces: list[dict[str, list[Any]]] = []

    def keep(self, *sites: str, at: At = None, on_device: bool = False) -> Self:
        """Keeps what these sites, or globs of sites, have at these positions, in the order of the
        text; what is said of a site later counts.

        on_device  the model's device keeps a copy: `trace[site]` is then an array of the device,
                   which torch, JAX and CuPy read where it lies (DLPack), of a prompt
                   that goes through in one piece; scores and patterns are the host's, always
        """
        self._check_open("keep")
        for ids in self.prompts:
            positions(at, len(ids))
        for pattern in sites:
            found = matching(pattern, self._sites)
            self._wanted |= dict.fromkeys(found, Selection(at))
            self._on_device -= set(found)
            if on_device:
                self._on_device |= set(found)
        return self

    @property
    def kept(self) -> list[str]:
        """The sites that `trace[site]` has, in the order of the pass."""
        return [site for site in self._sites if site in self._wanted]

    def __getitem__(self, key: str | tuple[str, int]) -> Any:
        """trace[site], of the only prompt, or trace[site, n] of the n-th: float32[positions, ...];
        the shape of a row is that of sites.py."""
        site, n = key if isinstance(key, tuple) and len(key) == 2 else (key, None)
        if not self.is_over:
            raise RequestError("trace: nothing is there before the `with` block has ended")
        if not isinstance(site, str) or site not in self._wanted:
            raise RequestError(
                f"trace: {site!r} was not kept; inside the block: trace.keep({site!r})"
            )
        if n is None and len(self.prompts) != 1:
            raise RequestError(f"trace: of {len(self.prompts)} prompts, say which: trace[site, n]")
        if n is not None and (not is_whole(n) or not 0 <= n < len(self.prompts)):
            raise RequestError(f"trace: expected prompt 0 to {len(self.prompts) - 1}, got {n!r}")
        return self._whole(site, n or 0)

    def to_xarray(self, n: int = 0) -> Any:
        """All that was kept of the n-th prompt as an xarray.Dataset, its dimensions by name."""
        return frames.dataset(
            {site: self[site, n] for site in self.kept},
            {
                site: kept_positions(self._wanted[site].at, len(self.prompts[n]))
                for site in self.kept
            },
        )

    def _whole(self, site: str, n: int) -> Any:
        """The pieces of a prompt's pass as one array."""
        pieces = self._pieces[n][site]
        if site in self._on_device:
            there = [piece for piece in pieces if piece.shape[0]]
            if len(there) == 1:
                return there[0]
            raise RequestError(
                f"trace: {site} lies on the device in {len(there)} pieces, as a prompt of "
                f"{len(self.prompts[n])} tokens went through; keep it on the host"
            )
        name = site.rpartition(".")[2]
        if name in _BEYOND:
            n_tokens = len(self.prompts[n])
            pieces = [_widened(piece, n_tokens, _BEYOND[name]) for piece in pieces]
        return np.concatenate(pieces)

    def __enter__(self) -> Self:
        if self.is_over:
            raise RequestError("trace: this one has run; make another")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self._pieces.clear()  # of a pass that has failed
            self._run(self)
            self.is_over = True

    def begin_prompt(self, n: int) -> None:
        """What follows is of this one: pieces of it, in order."""
        self._n_tokens = len(self.prompts[n])
        self._pieces.append({site: [] for site in self._wanted})

    # -------------------------------------------------------- Hooks (model/sites.py)
    def wants(self, site: str) -> bool:
        return site in self._wanted or super().wants(site)

    def visit(
        self, site: str, memory: Memory, buffer: Any, rows: NDArray[np.int32] | None = None
    ) -> None:
        pos = self._pos if rows is None else self._pos[rows]
        is_there, values = site in self._on_device, np.empty(0, np.float32)
        if not is_there or super().wants(site):
            values = self._edited(site, memory, buffer, pos)
        if site in self._wanted:
            chosen, _ = self._wanted[site].rows(pos, self._n_tokens)
            kept = _copied(memory, buffer, chosen) if is_there else values[chosen]
            self._pieces[-1][site].append(kept)

    def _is_for_prompts(self) -> bool:
        return True


def _copied(memory: Memory, buffer: Any, rows: Ints) -> Any:
    """These rows, in the same memory."""
    flat = buffer.reshape(buffer.shape[0], -1)
    chosen, out = memory.empty((rows.size,), np.int32), memory.empty((rows.size, flat.shape[1]))
    if rows.size:
        memory.write(chosen, rows.astype(np.int32))
        memory.take_rows(flat, chosen, out=out)
    return out.reshape(rows.size, *buffer.shape[1:])


def _widened(piece: Floats, n_tokens: int, beyond: float) -> Floats:
    """[rows, n_heads, p] with p = n_tokens."""
    missing = n_tokens - piece.shape[-1]
    return np.pad(piece, [(0, 0), (0, 0), (0, missing)], constant_values=beyond)
