"""Findings as tables of pandas and arrays of xarray, where these are installed."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

from numpy.typing import NDArray

from m40llm.errors import RequestError

_HEADS: Final = ("position", "head", "element")
_KV_HEADS: Final = ("position", "kv_head", "element")
_SCORES: Final = ("position", "head", "looked_at")
_DIMS: Final = {
    **dict.fromkeys(("q", "q_norm", "z"), _HEADS),
    **dict.fromkeys(("k", "k_norm", "v"), _KV_HEADS),
    **dict.fromkeys(("scores", "pattern"), _SCORES),
    **dict.fromkeys(("gate", "up", "act"), ("position", "neuron")),
    "router": ("position", "expert"),
    "logits": ("position", "token"),
}
_OF_STREAMS: Final = ("position", "channel")


def dataset(values: Mapping[str, NDArray[Any]], positions: Mapping[str, NDArray[Any]]) -> Any:
    """An xarray.Dataset of sites; where they were kept at other positions, it has NaN."""
    xarray = _module("xarray")
    arrays = {}
    for site, array in values.items():
        dims = _DIMS.get(site.rpartition(".")[2], _OF_STREAMS)
        arrays[site] = xarray.DataArray(array, dims=dims, coords={"position": positions[site]})
    return xarray.Dataset(arrays)


def table(columns: Mapping[str, list[Any]]) -> Any:
    """A pandas.DataFrame."""
    return _module("pandas").DataFrame(columns)


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        message = f'{name} is not installed; try: pip install "m40llm[research]"'
        raise RequestError(message) from None
