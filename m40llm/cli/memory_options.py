"""The options that say how a model lies in memory (docs/memory.md)."""

import re
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from m40llm.llm.fit import GpuLayers as Value


def _check_gpu_layers(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"auto|all|\d{1,6}", value):
        raise typer.BadParameter(f"expected a number of layers, auto or all, got {value!r}")
    return value


GpuLayers = Annotated[
    str | None,
    typer.Option(
        "--gpu-layers",
        metavar="N|auto|all",
        help="How many of the model's last layers are on the card, and with them the output; the "
        "others run on the CPU. auto: as many as fit (docs/memory.md).  [default: all]",
        callback=_check_gpu_layers,
        show_default=False,
    ),
]
Fit = Annotated[
    bool,
    typer.Option(
        "--fit",
        help="Choose the context that fills the card, and the cache's type: f16 where that leaves "
        "a useful context, else q8_0. What is chosen is said (docs/memory.md).",
    ),
]


def gpu_layers(value: str | None) -> "Value | None":
    """What `LLM.load` takes, of what was checked."""
    if value is None or value == "all":
        return None
    return "auto" if value == "auto" else int(value)
