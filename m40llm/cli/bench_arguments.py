"""What the verbs of `m40llm bench` share: lists on the command line, and the card."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from m40llm.errors import RequestError

if TYPE_CHECKING:
    from m40llm.device.gpu.ops import GpuOps
    from m40llm.progress import Progress


def numbers(name: str, text: str, least: int) -> list[int]:
    if not re.fullmatch(r"\d+(,\d+)*", text) or any(int(n) < least for n in text.split(",")):
        raise RequestError(f"{name}: expected numbers from {least}, with commas, got {text!r}")
    return [int(n) for n in text.split(",")]


def names(name: str, text: str, known: Sequence[str]) -> list[str]:
    for one in text.split(","):
        if one not in known:
            raise RequestError(f"{name}: expected some of {', '.join(known)}, got {one!r}")
    return text.split(",")


def gpu_ops(device: str, progress: "Progress") -> "GpuOps":
    from m40llm.device import open_device
    from m40llm.device.gpu.ops import GpuOps

    ops, _ = open_device(device, cublas=False if device not in ("cpu", "emulator") else None)
    if not isinstance(ops, GpuOps):
        raise RequestError(f"device: expected a CUDA card or the emulator, got {ops.name!r}")
    ops.prepare(progress)
    return ops
