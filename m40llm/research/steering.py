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


@dataclass(frozen=True)
class SteeringVector:
    """A direction at a site.

    site    one of llm.sites()
    values  float32[...] of a row there: mean over the first prompts less mean over the second
    """

    site: str
    values: NDArray[np.float32]

    def save(self, path: str | Path) -> None:
        """As an .npz of `site` and `values`."""
        path = Path(path)
        with path.open("wb") as file:
            np.savez(file, site=np.array(self.site), values=self.values)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """What `save` has written. RequestError for another file."""
        try:
            with np.load(Path(path), allow_pickle=False) as found:
                site, values = str(found["site"]), found["values"]
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise RequestError(f"{path}: no steering vector: {error}") from None
        if values.dtype != np.float32 or not np.isfinite(values).all():
            raise RequestError(f"{path}: expected finite float32 values, got {values.dtype}")
        return cls(site, values)
