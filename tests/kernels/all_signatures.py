"""All that is compiled for sm_52: the rows of every signatures_*.py, and decode programs."""

import importlib
from pathlib import Path
from typing import Any, Final

from gguf import GGMLQuantizationType as GGMLType
from numba import types
from signature import I32, U64_1, Signature

from m40llm.kernels.program import run
from m40llm.kernels.program.form import N_THREADS, Form

KERNELS: Final[list[Signature]] = [
    signature
    for path in sorted(Path(__file__).parent.glob("signatures_*.py"))
    for signature in importlib.import_module(path.stem).SIGNATURES
]

_WORDS: Final = types.Array(types.int64, 2, "C")
_ALL_THERE_IS: Final[dict[str, Any]] = {
    "qk_norm": "head",
    "has_factors": True,
    "activation": "gelu",
    "has_post_norms": True,
}


def _program(label: str, types: tuple[GGMLType, ...], n_seqs: int, **more: Any) -> Signature:
    form = Form(types, GGMLType.F16, n_seqs, 32, 8, 64, 64, "interleaved", **more)
    return Signature(run._compile(form), (_WORDS, I32, I32, I32, U64_1), N_THREADS, label)


PROGRAMS: Final = [
    _program("F16", (GGMLType.F16,), 1),
    _program("Q4_K and Q6_K x8", (GGMLType.Q4_K, GGMLType.Q6_K), 8),
    _program("as gemma3", (GGMLType.Q8_0,), 1, **_ALL_THERE_IS),
    _program("as olmo2", (GGMLType.Q8_0,), 1, qk_norm="row", has_post_norms=True),
]
SIGNATURES: Final = [*KERNELS, *PROGRAMS]
