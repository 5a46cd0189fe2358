"""Tiles of matrix products that were measured on this card: `m40llm bench tune` keeps them here.

<cache>/tuned/<digest of the card and of this code>.kernel
    {"device": ..., "choices": [["F16", 2048, 2048, 512, [128, 128, 1], 4], ...]}
    of the type, n_rows, n_cols and n_tokens: a tile's n_tokens, n_rows and n_groups, and n_splits

Another card, driver or version of the kernels has a file of its own. What cannot be read counts as
nothing: gemm_choice.py then says which tile it is.
"""

from typing import Any

from gguf import GGMLQuantizationType as GGMLType

from m40llm import __version__
from m40llm.device.gpu.code_digest import code_digest
from m40llm.device.gpu.disk_cache import entry_path, key_of, read_entry, write_entry
from m40llm.kernels.gemm_choice import Choice
from m40llm.kernels.gemm_tiles import Tile

_Matrix = tuple[str, int, int]


class Tuned:
    """The choices of one card."""

    def __init__(self, device: str) -> None:
        """device: the card, the architecture of its code and its driver, in words."""
        self._device = device
        self.path = entry_path("tuned", key_of(device, __version__, code_digest()))
        self._choices: dict[_Matrix, dict[int, Choice]] = {}
        entry = read_entry(self.path)
        if entry is not None and entry[0].get("device") == device:
            self._take(entry[0])

    def __len__(self) -> int:
        return sum(len(sizes) for sizes in self._choices.values())

    def choice(self, type: GGMLType, n_rows: int, n_cols: int, n_tokens: int) -> Choice | None:
        """What was fastest for as many tokens, or for the next more that were timed."""
        sizes = self._choices.get((type.name, n_rows, n_cols))
        if not sizes:
            return None
        timed = min((n for n in sizes if n >= n_tokens), default=None)
        return None if timed is None else sizes[timed]

    def set(self, type: GGMLType, n_rows: int, n_cols: int, n_tokens: int, choice: Choice) -> None:
        """From now on, and after `save` in other processes."""
        self._choices.setdefault((type.name, n_rows, n_cols), {})[n_tokens] = choice

    def save(self) -> None:
        """A reader sees all of it or nothing; a full or read-only disk is no error."""
        rows = [
            [*matrix, n_tokens, [tile.n_tokens, tile.n_rows, tile.n_groups], n_splits]
            for matrix, sizes in self._choices.items()
            for n_tokens, (tile, n_splits) in sizes.items()
        ]
        write_entry(self.path, {"device": self._device, "choices": rows}, b"")

    def _take(self, header: dict[str, Any]) -> None:
        for name, n_rows, n_cols, n_tokens, tile, n_splits in header["choices"]:
            self.set(GGMLType[name], n_rows, n_cols, n_tokens, Choice(Tile(*tile), n_splits))
