"""Steering vectors: the difference that a contrast makes to the residual stream (arXiv 2308.10248,
2312.06681), to be added while text is generated.

    vector = llm.steering_vector("blk.9.resid_post", [["I love it"], ...], [["I hate it"], ...])
    vector.save("love.npz")
    with llm.edited() as edits:
        edits.add(vector.site, 4 * vector.values)
        print(llm.generate("That film was").text)
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from m40llm.errors import RequestError
from m40llm.whole_file import whole_file

# Of what np.load says: of another file, of one cut short, and (TypeError) of an .npy or no path.
_BROKEN = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile)


@dataclass(frozen=True)
class SteeringVector:
    """A direction at a site.

    site    one of llm.sites()
    values  float32[...] of a row there: mean over the first prompts less mean over the second
    """

    site: str
    values: NDArray[np.float32]

    def save(self, path: str | Path) -> None:
        """As an .npz of `site` and `values`, whole or not at all. RequestError where no file can be
        written."""
        path = Path(path)
        if path.is_dir() or not path.parent.is_dir():
            raise RequestError(f"{path}: cannot be written: there is no such folder, or it is one")
        with whole_file(path) as file:
            np.savez(file, site=np.array(self.site), values=self.values)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """What `save` has written. RequestError for another file."""
        try:
            with np.load(Path(path), allow_pickle=False) as found:
                site, values = found["site"], found["values"]
        except FileNotFoundError:
            raise RequestError(f"{path}: there is no such file") from None
        except _BROKEN as error:
            raise RequestError(f"{path}: no steering vector: {error}") from None
        if site.ndim or site.dtype.kind != "U" or not values.size or not values.ndim:
            raise RequestError(
                f"{path}: expected the name of a site, and an array of values for it"
            )
        if values.dtype != np.float32 or not np.isfinite(values).all():
            raise RequestError(f"{path}: expected finite float32 values, got {values.dtype}")
        return cls(str(site), values)
