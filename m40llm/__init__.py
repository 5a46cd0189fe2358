"""m40llm: GGUF language models on GPU kernels written in Python.

    from m40llm import LLM, SamplingParams
    with LLM.load("smollm2") as llm:
        print(llm.generate("The capital of France is", SamplingParams(max_tokens=8)).text)

Importing this package is cheap: NumPy, Numba and CUDA load with the first name that needs them.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from m40llm.engine.sampling_params import SamplingParams
    from m40llm.llm import Completion, StreamItem
    from m40llm.llm.service import Service
    from m40llm.research import LLM

__version__ = "0.1.0"
__all__ = ["LLM", "Completion", "SamplingParams", "Service", "StreamItem", "__version__"]

_HOME = {
    "LLM": "m40llm.research",
    "Completion": "m40llm.llm",
    "StreamItem": "m40llm.llm",
    "Service": "m40llm.llm.service",
    "SamplingParams": "m40llm.engine.sampling_params",
}


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'm40llm' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
