"""A projection as a picture: which kernels a step's time goes to, each as a range.

Needs matplotlib: pip install "m40llm[research]".
"""

from collections import defaultdict
from typing import Any, Final

from m40llm.errors import RequestError
from m40llm.pictures import new_figure

_COLOURS: Final = {"memory": "#2a6f5e", "issue": "#c07a2b", "latency": "#6a5a9c"}
_STEPS: Final = ("decode", "prefill")
_PANEL: Final = (10.0, 3.4)  # inches


def chart(document: dict[str, Any]) -> Any:
    """Of report.py's document: a matplotlib figure, a panel a step. RequestError where nothing was
    projected, or matplotlib is missing."""
    if not document["kernels"]:
        raise RequestError("chart: there are no times: no layers fit on this card")
    width, height = _PANEL
    fig = new_figure("chart", (width, height * len(_STEPS)))
    from matplotlib.patches import Patch

    for axes, name in zip(fig.subplots(len(_STEPS)), _STEPS, strict=True):
        _draw(axes, name, document)
    fig.suptitle(f"{document['card']}: {document['what']}", fontsize=10)
    bounds = [Patch(color=colour, label=bound) for bound, colour in _COLOURS.items()]
    fig.legend(handles=bounds, title="bound by", loc="outside lower center", ncols=len(bounds))
    return fig


def _rate(step: dict[str, Any]) -> str:
    """Of a whole model; of a part of one there is only a time."""
    if step["tokens_per_s"] is None:
        low, high = step["ms"]
        return f"{low:,.3g} to {high:,.3g} ms, of the layers on the card"
    low, high = step["tokens_per_s"]
    return f"{low:,.0f} to {high:,.0f} tokens/s"


def _draw(axes: Any, name: str, document: dict[str, Any]) -> None:
    """From the shortest to the longest time of all launches of each kernel, the longest above."""
    sums: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for kernel in document["kernels"]:
        if kernel["step"] == name:
            low_high = sums[kernel["kernel"], kernel["bound"]]
            for end, us in enumerate(kernel["us"]):
                low_high[end] += kernel["count"] * us / 1e3
    rows = sorted(sums.items(), key=lambda row: row[1][1])
    for at, ((_, bound), (low, high)) in enumerate(rows):
        axes.barh(at, low, color=_COLOURS[bound])
        axes.barh(at, high - low, left=low, color=_COLOURS[bound], alpha=0.35)
    axes.set_yticks(range(len(rows)), [kernel for (kernel, _), _ in rows])
    axes.set_title(f"{name}: {_rate(document[name])}", fontsize=10)
    axes.set_xlabel("ms of a step; pale: up to the longest")
