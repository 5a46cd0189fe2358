"""Where two models part: the same prompt through both, site by site.

Two devices, two files of one model, or the same file before and after a change of yours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from m40llm.errors import RequestError
from m40llm.llm.arguments import Prompt
from m40llm.research.selection import check_single

if TYPE_CHECKING:
    from m40llm.research.llm import LLM


@dataclass(frozen=True)
class Comparison:
    """How far b's values are from a's, at each site that both have, in the order of the pass.

    sites  names
    most   float64[n_sites]  the largest |b - a|
    rms    float64[n_sites]  root mean square of b - a
    size   float64[n_sites]  root mean square of a
    """

    sites: list[str]
    most: NDArray[np.float64]
    rms: NDArray[np.float64]
    size: NDArray[np.float64]

    def __str__(self) -> str:
        """A line a site; relative is rms over size."""
        lines = [f"{'site':24} {'largest':>10} {'rms':>10} {'relative':>10}"]
        for n, site in enumerate(self.sites):
            relative = self.rms[n] / self.size[n] if self.size[n] else 0.0
            lines.append(f"{site:24} {self.most[n]:10.3g} {self.rms[n]:10.3g} {relative:10.3g}")
        return "\n".join(lines)


def compare(a: "LLM", b: "LLM", prompt: Prompt, sites: str | Sequence[str] = "*") -> Comparison:
    """Traces the prompt through both; a text is encoded by a. Scores count where they are finite.

    RequestError where a site has another shape in the one than in the other, or none is in both.
    """
    for name, model in (("a", a), ("b", b)):
        if not hasattr(model, "trace"):
            raise RequestError(f"{name}: expected a model, as LLM.load returns it, got {model!r}")
    check_single(prompt)
    with a.trace(prompt, keep=sites) as ours:
        pass
    with b.trace(ours.prompts[0], keep=sites) as theirs:
        pass
    found = [site for site in ours.kept if site in theirs.kept]
    if not found:
        raise RequestError(f"sites: {sites!r} names nothing that both models have")
    rows = []
    for site in found:
        x, y = ours[site].astype(np.float64), theirs[site].astype(np.float64)
        if x.shape != y.shape:
            raise RequestError(f"compare: {site} is {list(x.shape)} in a, {list(y.shape)} in b")
        is_there = np.isfinite(x) | np.isfinite(y)
        x, y = x[is_there], y[is_there]
        apart = y - x
        rows.append((np.abs(apart).max(), np.sqrt(np.mean(apart**2)), np.sqrt(np.mean(x**2))))
    most, rms, size = np.array(rows).T
    return Comparison(found, most, rms, size)
