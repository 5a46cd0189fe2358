"""Part: a stretch of a model's layers, which is what one device holds of it."""

import re
from dataclasses import dataclass
from typing import Self

_OF_LAYER = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True)
class Part:
    """Layers `first` to `end` - 1 of `n_layers`.

    The embedding goes with the first layer, the output with the last.
    """

    first: int
    end: int
    n_layers: int

    @classmethod
    def whole(cls, n_layers: int) -> Self:
        return cls(0, n_layers, n_layers)

    @property
    def layers(self) -> range:
        return range(self.first, self.end)

    @property
    def has_embedding(self) -> bool:
        return self.first == 0

    @property
    def has_output(self) -> bool:
        return self.end == self.n_layers

    def holds(self, name: str) -> bool:
        """Whether a tensor, or a matrix of a layer, lies here: "blk.0.attn_q", "output.weight"."""
        if of_layer := _OF_LAYER.match(name):
            return int(of_layer.group(1)) in self.layers
        return self.has_embedding if name.startswith("token_embd") else self.has_output


def split(n_layers: int, n_last: int) -> tuple[Part, Part]:
    """(all but the last so many layers, those); one of the two may have none."""
    at = n_layers - n_last
    return Part(0, at, n_layers), Part(at, n_layers, n_layers)
