"""A report on one text as a single HTML page: costs, lens, attribution, attention."""

from base64 import b64encode
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jinja2 import Environment, Template

from m40llm import __version__
from m40llm.llm.arguments import Prompt
from m40llm.progress import Progress, silent
from m40llm.research.lens import Attribution, Lens

if TYPE_CHECKING:
    from m40llm.research.llm import LLM

MOST_ATTENTION: Final = 48  # tokens, up to which patterns are part of the page
_N_SHARES: Final = 20


def report(llm: "LLM", prompt: Prompt, *, top: int = 5, progress: Progress | None = None) -> str:
    """The page's text. It needs nothing from elsewhere, and no network.

    RequestError for an empty prompt, or one of more tokens than the context has.
    """
    told = progress or silent
    told("logit lens", 0.0)
    lens = llm.lens(prompt, top=top)
    told("attribution", 0.5)
    answer = int(lens.top_ids[-1, -1, 0])
    found = llm.attribution(lens.ids, answer)
    told("attention", 0.75)
    patterns = _patterns(llm, lens.ids) if len(lens.ids) <= MOST_ATTENTION else []
    told("attention", 1.0)
    tokens = llm.pieces(lens.ids)
    costs = np.array([0.0, *-lens.next_logprobs[-1, :-1].astype(np.float64)])
    return _template().render(
        title=f"m40llm lens: {''.join(tokens)[:60]}",
        model=llm.path.name,
        device=llm.device_name,
        version=__version__,
        tokens=tokens,
        shown_tokens=[shown(token) for token in tokens],
        costs=list(zip(tokens, costs.tolist(), strict=True)),
        mean_nll=float(costs[1:].mean()) if len(costs) > 1 else 0.0,
        lens=lens,
        rows=list(_rows(lens)),
        answer=llm.pieces([answer])[0],
        logit=found.logit,
        n_parts=len(found.parts),
        shares=_shares(found),
        patterns=patterns,
    )


def _template() -> Template:
    page = Environment(autoescape=True, trim_blocks=True)
    page.filters["shown"] = shown
    source = files("m40llm.research").joinpath("report.html").read_text(encoding="utf-8")
    return page.from_string(source)


def _shares(found: Attribution) -> list[tuple[str, float, float]]:
    """(name, value, size of its bar from 0 to 1), the largest first."""
    values = found.values.tolist()
    largest = sorted(range(len(values)), key=lambda n: -abs(values[n]))[:_N_SHARES]
    scale = abs(values[largest[0]])
    return [(found.parts[n], values[n], abs(values[n]) / scale) for n in largest]


def shown(token: str) -> str:
    """With spaces and line ends to be seen."""
    return token.replace(" ", "\u00b7").replace("\n", "\u21b5").replace("\t", "\u2192")


def _rows(lens: Lens) -> Any:
    """(site, cells) from the last layer down."""
    p = np.exp(lens.top_logprobs)
    for n in reversed(range(len(lens.sites))):
        cells = []
        for pieces, likely in zip(lens.pieces[n], p[n], strict=True):
            others = [f"{shown(s)} {100 * q:.1f} %" for s, q in zip(pieces, likely, strict=True)]
            cells.append({"piece": pieces[0], "p": float(likely[0]), "others": "\n".join(others)})
        yield lens.sites[n], cells


def _patterns(llm: "LLM", ids: list[int]) -> list[list[str]]:
    """Of each layer and head: uint8[t, t] of 255ths in base64."""
    with llm.trace(ids, keep="blk.*.pattern") as trace:
        pass
    found = []
    for site in trace.kept:
        bytes_of = np.rint(255 * trace[site]).astype(np.uint8).swapaxes(0, 1)
        found.append([b64encode(head.tobytes()).decode() for head in bytes_of])
    return found
