"""Recipes: which type each tensor gets when a file is written again.

    a type's name   every matrix
    COPY            as it was
    Q4_K_M, ...     llama.cpp's mixtures: more bits where they help most

Vectors, and what routes experts, stay as they are. A matrix whose rows are no whole number of
blocks takes what llama.cpp falls back to, or stays if that is smaller. (Rules: llama.cpp,
llama-quant.cpp, without an importance matrix.)
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from gguf import GGMLQuantizationType as GGMLType
from gguf import LlamaFileType
from gguf.quants import quantize as gguf_quantize

from m40llm.errors import RequestError
from m40llm.gguf.blocks import FORMATS, can_dequantize, row_bytes
from m40llm.gguf.directory import TensorInfo
from m40llm.gguf.k_quants import K_QUANTS

COPY: Final = "COPY"
_UNTOUCHED: Final = ("ffn_gate_inp.weight",)  # llama.cpp keeps the router of experts, too
_FILE_TYPES: Final = {  # where that is not MOSTLY_ and the recipe's name
    "F32": "ALL_F32",
    "MXFP4": "MOSTLY_MXFP4_MOE",
    "Q4_K": "MOSTLY_Q4_K_S",
    "Q5_K": "MOSTLY_Q5_K_S",
}
_FALLBACKS: Final = {  # of types of 256 weights a block to types of 32
    GGMLType.Q6_K: GGMLType.Q8_0,
    GGMLType.Q5_K: GGMLType.Q5_1,
    GGMLType.Q4_K: GGMLType.Q5_0,
    GGMLType.TQ2_0: GGMLType.Q4_0,
    GGMLType.TQ1_0: GGMLType.Q4_0,
}
_IN_LAYER: Final = re.compile(r"blk\.(\d+)\.(.+)")
_FEW_EXPERTS: Final = 8  # as Mixtral has; its attention is a small part of it
_LAYERS_OF_70B: Final = 80  # whose V is an eighth as large as Q

InLayer = Callable[[int, int], bool]  # (layer, n_layers)


@dataclass(frozen=True)
class Mixture:
    """Of attn_v and ffn_down some layers get `more`; the output matrix is always Q6_K."""

    base: GGMLType
    more: GGMLType
    in_v: InLayer
    in_down: InLayer
    qkv: GGMLType


def _nowhere(layer: int, n_layers: int) -> bool:
    return False


def _outer_and_each_third(layer: int, n_layers: int) -> bool:
    """The first and the last eighth, and every third layer between."""
    first = n_layers // 8
    return layer < first or layer >= 7 * n_layers // 8 or (layer - first) % 3 == 2


_MIXTURES: Final = {
    "Q4_K_S": Mixture(
        *(GGMLType.Q4_K, GGMLType.Q5_K),
        in_v=lambda layer, n_layers: layer < 4,
        in_down=lambda layer, n_layers: layer < n_layers // 8,
        qkv=GGMLType.Q4_K,
    ),
    "Q4_K_M": Mixture(
        *(GGMLType.Q4_K, GGMLType.Q6_K, _outer_and_each_third, _outer_and_each_third),
        qkv=GGMLType.Q5_K,
    ),
    "Q5_K_S": Mixture(GGMLType.Q5_K, GGMLType.Q5_K, _nowhere, _nowhere, GGMLType.Q5_K),
    "Q5_K_M": Mixture(
        *(GGMLType.Q5_K, GGMLType.Q6_K, _outer_and_each_third, _outer_and_each_third),
        qkv=GGMLType.Q6_K,
    ),
}


@dataclass(frozen=True)
class Recipe:
    """`wanted` is what a matrix gets if its rows allow it; None: what it has."""

    name: str
    base: GGMLType | None

    @property
    def file_type(self) -> LlamaFileType | None:
        """For the key general.file_type; None keeps the file's own."""
        if self.base is None:
            return None
        return LlamaFileType[_FILE_TYPES.get(self.name, f"MOSTLY_{self.name}")]

    def types(
        self, tensors: Mapping[str, TensorInfo], n_layers: int, n_experts: int
    ) -> dict[str, tuple[GGMLType, GGMLType]]:
        """(type of the new file, type wanted) by name."""
        found = {}
        for name, info in tensors.items():
            wanted = info.type
            if self.base is not None and _is_matrix(info):
                wanted = self._wanted(name, tensors.keys(), n_layers, n_experts)
            found[name] = _fitting(info, wanted), wanted
        return found

    def _wanted(self, name: str, names: Collection[str], n_layers: int, n_experts: int) -> GGMLType:
        assert self.base is not None
        mixture = _MIXTURES.get(self.name)
        if mixture is None:
            return self.base
        output = "output.weight" if "output.weight" in names else "token_embd.weight"
        if name == output:
            return GGMLType.Q6_K
        match = _IN_LAYER.fullmatch(name)
        if match is None:
            return self.base
        return _in_layer(mixture, int(match[1]), match[2], n_layers, n_experts)


def _in_layer(mixture: Mixture, layer: int, role: str, n_layers: int, n_experts: int) -> GGMLType:
    is_few = n_experts == _FEW_EXPERTS
    if role in ("attn_v.weight", "attn_k.weight") and is_few:
        return GGMLType.Q8_0
    if role == "attn_output.weight" and is_few:
        return GGMLType.Q5_K
    if role == "attn_qkv.weight":
        return mixture.qkv
    if role == "attn_v.weight":
        if mixture.in_v(layer, n_layers):
            return mixture.more
        is_shared = n_layers == _LAYERS_OF_70B
        return GGMLType.Q5_K if is_shared else mixture.base
    if role.startswith("ffn_down") and mixture.in_down(layer, n_layers):
        return mixture.more
    return mixture.base


def _is_matrix(info: TensorInfo) -> bool:
    """Whether a recipe changes it."""
    return len(info.shape) >= 2 and not info.name.endswith(_UNTOUCHED)


def _fitting(info: TensorInfo, wanted: GGMLType) -> GGMLType:
    """`wanted`, or what comes in its place where the rows are no whole number of its blocks."""
    if _holds(wanted, info):
        return wanted
    fallback = _FALLBACKS.get(wanted, GGMLType.F16)
    if not _holds(fallback, info):
        fallback = GGMLType.F16
    n_cols = info.shape[-1]
    return min(info.type, fallback, key=lambda each: row_bytes(each, n_cols))


def _holds(type: GGMLType, info: TensorInfo) -> bool:
    return type == info.type or info.shape[-1] % FORMATS[type].n_weights == 0


@cache
def recipes() -> dict[str, Recipe]:
    """All that can be written, by name; gguf.quants is asked with a block of zeros each."""
    plain = [Recipe(type.name, type) for type in FORMATS if _can_quantize(type)]
    mixed = [Recipe(name, mixture.base) for name, mixture in _MIXTURES.items()]
    return {recipe.name: recipe for recipe in (*plain, *mixed, Recipe(COPY, None))}


def recipe_of(name: str) -> Recipe:
    """RequestError for a name that is none, with those that are."""
    if name.upper() not in recipes():
        raise RequestError(f"type: expected one of {', '.join(recipes())}, got {name!r}")
    return recipes()[name.upper()]


def _can_quantize(type: GGMLType) -> bool:
    if type in K_QUANTS:
        return True
    try:
        gguf_quantize(np.zeros((1, FORMATS[type].n_weights), np.float32), type)
    except NotImplementedError:
        return False
    return can_dequantize(type)
