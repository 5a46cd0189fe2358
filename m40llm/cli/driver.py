"""What the NVIDIA driver says of itself and its cards, asked through ctypes.

`doctor` asks here and not through numba.cuda: it must answer where that is not installed, and
at once. Names and numbers are those of the CUDA driver API (cuda.h).
"""

import ctypes
import sys
from typing import Any

LIBRARIES = ("nvcuda.dll",) if sys.platform == "win32" else ("libcuda.so.1", "libcuda.so")
COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR = 75, 76  # CUdevice_attribute
NAME_BYTES = 256


class _CallError(Exception):
    """A driver call failed; the text is the driver's own."""


def find_driver() -> dict[str, Any]:
    """The driver and its cards: is_found, release, cuda_version, cards, problem (or None)."""
    from m40llm.device.cuda.requirements import driver_release

    found: dict[str, Any] = {
        "is_found": False,
        "release": driver_release(),
        "cuda_version": None,
        "cards": [],
        "problem": None,
    }
    cuda = _load()
    if cuda is None:
        return found
    found["is_found"] = True
    try:
        number = ctypes.c_int()
        _call(cuda, "cuDriverGetVersion", ctypes.byref(number))
        found["cuda_version"] = f"{number.value // 1000}.{number.value % 1000 // 10}"
        _call(cuda, "cuInit", 0)
        _call(cuda, "cuDeviceGetCount", ctypes.byref(number))
        found["cards"] = [_card(cuda, index) for index in range(number.value)]
    except (_CallError, AttributeError) as error:  # AttributeError: the library has no such call
        found["problem"] = str(error)
    return found


def _load() -> ctypes.CDLL | None:
    for name in LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _call(cuda: ctypes.CDLL, name: str, *args: Any) -> None:
    result = getattr(cuda, name)(*args)
    if result != 0:
        text = ctypes.c_char_p()
        cuda.cuGetErrorString(result, ctypes.byref(text))
        told = text.value.decode(errors="replace") if text.value else f"error {result}"
        raise _CallError(f"{name}: {told}")


def _card(cuda: ctypes.CDLL, index: int) -> dict[str, Any]:
    device, name = ctypes.c_int(), ctypes.create_string_buffer(NAME_BYTES)
    major, minor, memory = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    _call(cuda, "cuDeviceGet", ctypes.byref(device), index)
    _call(cuda, "cuDeviceGetName", name, NAME_BYTES, device)
    attribute = "cuDeviceGetAttribute"
    _call(cuda, attribute, ctypes.byref(major), COMPUTE_CAPABILITY_MAJOR, device)
    _call(cuda, attribute, ctypes.byref(minor), COMPUTE_CAPABILITY_MINOR, device)
    _call(cuda, "cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    return {
        "index": index,
        "name": name.value.decode(errors="replace"),
        "compute_capability": [major.value, minor.value],
        "memory_bytes": memory.value,
    }
