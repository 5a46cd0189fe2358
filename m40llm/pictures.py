"""Pictures by matplotlib, which is asked for only where one is drawn.

Needs matplotlib: pip install "m40llm[research]".
"""

from pathlib import Path
from typing import Any

from m40llm.errors import RequestError


def new_figure(what: str, size: tuple[float, float]) -> Any:
    """An empty figure of so many inches. RequestError, which names `what`, without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        message = f'{what}: no matplotlib here; try: pip install "m40llm[research]"'
        raise RequestError(message) from None
    return Figure(figsize=size, layout="constrained")


def check_place(path: str | Path) -> None:
    """RequestError where no picture of this name can be saved: asked before one is drawn."""
    place = Path(path)
    if not place.name:
        raise RequestError(f"{path}: expected the name of a picture, without or with .png or .svg")
    if not place.parent.is_dir():
        raise RequestError(f"{path}: cannot be written: there is no folder {place.parent}")


def save(figure: Any, path: str | Path) -> tuple[Path, Path]:
    """The picture as NAME.png and NAME.svg, whichever of them, or neither, `path` ends in.

    RequestError where there is no such folder.
    """
    check_place(path)
    stem = Path(path)
    stem = stem.with_suffix("") if stem.suffix in (".png", ".svg") else stem
    paths = stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.svg")
    for one in paths:
        figure.savefig(one, dpi=150)
    return paths
