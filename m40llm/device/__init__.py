"""Devices: `open_device` turns what the user typed after --device into one device's ops."""

import re

from m40llm.device.ops import Ops
from m40llm.errors import DeviceError, RequestError

DEVICE_FORMS = "auto, cpu, cuda, cuda:N or emulator"


def open_device(name: str) -> tuple[Ops, str]:
    """(ops, why this device). `auto` takes a usable GPU, else the CPU.

    Raises RequestError for a name of no known form, DeviceError for a device that cannot be used.
    """
    if name in {"auto", "cpu"}:
        from m40llm.device.cpu.ops import CpuOps

        reason = "asked for" if name == "cpu" else "the only device of this version"
        return CpuOps(), reason
    if name == "emulator" or re.fullmatch(r"cuda(:-?\d+)?", name):
        raise DeviceError(f"device {name!r}: this version runs on cpu only; use --device cpu")
    raise RequestError(f"device: expected {DEVICE_FORMS}, got {name!r}")


__all__ = ["DEVICE_FORMS", "Ops", "open_device"]
