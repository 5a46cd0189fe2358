"""Activation patching: what of one prompt's pass, put into another's, brings its answer with it.

    0  the patched pass answers as the corrupted prompt does
    1  it answers as the clean one does

as the difference of two logits at the last position says (Meng et al., arXiv 2202.05262; Wang et
al., arXiv 2211.00593).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from m40llm.errors import RequestError
from m40llm.llm.arguments import Prompt
from m40llm.progress import Progress
from m40llm.research.selection import check_single
from m40llm.research.trace import Trace

if TYPE_CHECKING:
    from m40llm.research.llm import LLM


@dataclass(frozen=True)
class Patching:
    """The effect of each patch: site by site, position by position.

    sites      those that were patched
    clean_ids, corrupted_ids  the prompts
    tokens     texts of the corrupted one's
    effects    float64[n_sites, n_positions]
    clean, corrupted  logit differences of the two passes as they are
    """

    sites: list[str]
    clean_ids: list[int]
    corrupted_ids: list[int]
    tokens: list[str]
    effects: NDArray[np.float64]
    clean: float
    corrupted: float


def patched(
    llm: "LLM",
    clean: Prompt,
    corrupted: Prompt,
    sites: str | Sequence[str],
    tokens: tuple[int, int],
    progress: Progress | None,
) -> Patching:
    """See LLM.patch."""
    check_single(clean)
    check_single(corrupted)
    with llm.trace(clean, keep=sites).keep("logits", at=-1) as source:
        pass
    with llm.trace(corrupted, keep="logits", at=-1) as plain:
        pass
    ids, n_tokens = plain.prompts[0], len(plain.prompts[0])
    if len(source.prompts[0]) != n_tokens:
        n_clean = len(source.prompts[0])
        raise RequestError(f"patch: {n_clean} tokens in the clean prompt, {n_tokens} in the other")
    best, worst = _difference(source, tokens), _difference(plain, tokens)
    if best == worst:
        raise RequestError(f"patch: both prompts have the same logit difference, {best:g}")
    kept = [site for site in source.kept if site != "logits"]
    if not kept:
        raise RequestError(f"sites: expected some before the logits, got {sites!r}")
    effects = np.empty((len(kept), n_tokens))
    for row, site in enumerate(kept):
        for at in range(n_tokens):
            with llm.trace(ids, keep="logits", at=-1) as trace:
                trace.replace(site, source[site][at], at=at)
            effects[row, at] = (_difference(trace, tokens) - worst) / (best - worst)
            if progress:
                progress("patching", (row * n_tokens + at + 1) / effects.size)
    return Patching(kept, source.prompts[0], ids, llm.pieces(ids), effects, best, worst)


def _difference(trace: Trace, tokens: tuple[int, int]) -> float:
    [logits] = trace["logits"].astype(np.float64)
    return float(logits[tokens[0]] - logits[tokens[1]])
