"""Calls of the CUDA driver whose failure is an exception that names the call."""

from collections.abc import Callable
from typing import Any, Final

from cuda.bindings import driver

OUT_OF_MEMORY: Final = driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY
UNSUPPORTED_PTX: Final = driver.CUresult.CUDA_ERROR_UNSUPPORTED_PTX_VERSION
NOT_READY: Final = driver.CUresult.CUDA_ERROR_NOT_READY
STREAM_WITHOUT_LEGACY_SYNC: Final = 1  # CU_STREAM_NON_BLOCKING


class DriverError(Exception):
    """A call of the driver that did not return CUDA_SUCCESS."""

    def __init__(self, function: str, result: Any) -> None:
        super().__init__(f"{function}: {result.name}")
        self.result = result


def call(function: Callable[..., Any], *args: Any) -> Any:
    """What the driver's function gives: nothing, one value, or several."""
    result, *values = function(*args)
    if result != driver.CUresult.CUDA_SUCCESS:
        raise DriverError(function.__name__, result)
    return values[0] if len(values) == 1 else tuple(values)


def text_of(answer: bytes) -> str:
    """A name that the driver has written, up to its end."""
    return answer.partition(b"\0")[0].decode(errors="replace")


def release_of(cuda_version: int) -> str:
    """12090 as CUDA's releases are called: "12.9"."""
    return f"{cuda_version // 1000}.{cuda_version % 1000 // 10}"


def is_done(event: Any) -> bool:
    """Whether a CUevent has come."""
    (result,) = driver.cuEventQuery(event)
    if result == NOT_READY:
        return False
    if result != driver.CUresult.CUDA_SUCCESS:
        raise DriverError("cuEventQuery", result)
    return True
