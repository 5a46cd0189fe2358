"""Devices: `open_device` turns what the user typed after --device into one device's ops."""

import re

from m40llm.device.ops import Ops
from m40llm.device.packages import CUDA_PACKAGE
from m40llm.errors import DeviceError, RequestError

DEVICE_FORMS = "auto, cpu, cuda, cuda:N or emulator"


def open_device(name: str) -> tuple[Ops, str]:
    """(ops, why this device). `auto` takes a usable GPU, else the CPU.

    `cuda` and `cuda:-1` take an sm_52 card first, then the most capable; `cuda:N` that card.
    Raises RequestError for a name of no known form, DeviceError for a device that cannot be used.
    """
    if name == "auto":
        return _open_auto()
    if name == "cpu":
        return _open_cpu(), "asked for"
    if name == "emulator":
        return _open_emulator(), "asked for; a first run compiles kernels for about a minute"
    match = re.fullmatch(r"cuda(?::(-1|\d+))?", name)
    if not match:
        raise RequestError(f"device: expected {DEVICE_FORMS}, got {name!r}")
    number = match.group(1)
    return _open_cuda(None if number in (None, "-1") else int(number))


def _open_auto() -> tuple[Ops, str]:
    from m40llm.device.cuda.choose import find_cards

    cards, reason = find_cards()
    if not cards:
        return _open_cpu(), reason
    try:
        return _open_cuda(None)
    except DeviceError as error:
        return _open_cpu(), str(error)


def _open_cpu() -> Ops:
    from m40llm.device.cpu.ops import CpuOps

    return CpuOps()


def _open_cuda(index: int | None) -> tuple[Ops, str]:
    from m40llm.device.cuda.choose import choose_card

    chosen = choose_card(index)
    from m40llm.device.cuda.card import CudaCard
    from m40llm.device.gpu.ops import GpuOps

    capability = "sm_{}{}".format(*chosen.capability)
    return GpuOps(CudaCard(chosen.index)), f"{chosen.name}, {capability}"


def _open_emulator() -> Ops:
    try:
        from m40llm.device.emulator.card import EmulatedCard
        from m40llm.device.gpu.ops import GpuOps
    except ImportError as error:
        raise DeviceError(f"device 'emulator': {error}; it needs {CUDA_PACKAGE}") from None
    return GpuOps(EmulatedCard(checks=False))


__all__ = ["DEVICE_FORMS", "Ops", "open_device"]
