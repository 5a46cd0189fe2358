"""What the verbs of `m40llm bench` share: options, lists on the command line, and the card."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from m40llm.errors import DeviceError, RequestError

if TYPE_CHECKING:
    from m40llm.device.gpu.ops import GpuOps
    from m40llm.progress import Progress

Shape = Annotated[
    str | None,
    typer.Option(
        metavar="tiny|135m|1b|8b|qwen3-8b",
        help="No model's, SmolLM2, Llama 3.2 1B, Llama 3.1 8B or Qwen3 8B.  [default: 1b]",
        show_default=False,
    ),
]
Types = Annotated[
    str | None,
    typer.Option(
        metavar="TYPE,...",
        help="Of the weights: F16, Q8_0, Q4_0, Q4_K_M, ...  [default: F16]",
        show_default=False,
    ),
]


def not_beside_model(given: Mapping[str, str | None], of_model: str) -> None:
    """RequestError for the first that is given; of_model: what the model has of its own."""
    for name, text in given.items():
        if text is not None:
            raise RequestError(f"{name}: not beside MODEL, {of_model}; got {text!r}")


def numbers(name: str, text: str, least: int) -> list[int]:
    if not re.fullmatch(r"\d+(,\d+)*", text) or any(int(n) < least for n in text.split(",")):
        raise RequestError(f"{name}: expected numbers from {least}, with commas, got {text!r}")
    return [int(n) for n in text.split(",")]


def names(name: str, text: str, known: Sequence[str]) -> list[str]:
    for one in text.split(","):
        if one not in known:
            raise RequestError(f"{name}: expected some of {', '.join(known)}, got {one!r}")
    return text.split(",")


def as_gpu_ops(ops: Any) -> "GpuOps":
    """The same; RequestError where they are no card's and not the emulator's."""
    from m40llm.device.gpu.ops import GpuOps

    if not isinstance(ops, GpuOps):
        raise RequestError(f"device: expected a CUDA card or the emulator, got {ops.name!r}")
    return ops


def check_compiler() -> None:
    """DeviceError where no kernel can be compiled: before modules are loaded that have some."""
    from m40llm.device.numba_cuda import numba_cuda_problem

    if problem := numba_cuda_problem():
        raise DeviceError(f"kernels cannot be compiled: {problem}")


def gpu_ops(device: str, progress: "Progress") -> "GpuOps":
    from m40llm.device import open_device

    found, _ = open_device(device, cublas=False if device not in ("cpu", "emulator") else None)
    ops = as_gpu_ops(found)
    ops.prepare(progress)
    return ops
