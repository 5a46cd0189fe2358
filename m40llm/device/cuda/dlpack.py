"""DLPack, by which PyTorch, JAX and CuPy take an array in a card's memory as their own, uncopied.

https://dmlc.github.io/dlpack: a capsule "dltensor" around a DLManagedTensor, whose `deleter` the
taker calls when it is done with it; until then the memory is kept alive here. The first version of
the structures, which all takers know.
"""

import ctypes
from typing import Any, Final

import numpy as np

CUDA: Final = 2  # kDLCUDA
_KINDS: Final = {"i": 0, "u": 1, "f": 2}  # DLDataTypeCode by NumPy's kind
_NAME: Final = b"dltensor"  # lives as long as capsules do: they point to it


class _Device(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int32), ("id", ctypes.c_int32)]


class _DataType(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


_Callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    _fields_ = [("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Callback)]


_lent: Final[dict[int, tuple[Any, ...]]] = {}  # by a structure's address: what it points to


def _forget(address: int) -> None:
    _lent.pop(address, None)


def _drop(capsule: int) -> None:
    """Of a capsule that nobody took; one that was taken has another name."""
    if _is_valid(capsule, _NAME):
        _forget(_pointer(capsule, _NAME))


_delete, _destruct = _Callback(_forget), _Callback(_drop)
_api = ctypes.pythonapi
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", _api)
)
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", _api)
)
_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", _api)
)


def capsule(
    address: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: np.dtype[Any],
    device: tuple[int, int],
    owner: Any,
) -> Any:
    """A "dltensor" of the memory at `address`, which `owner` keeps.

    shape    elements;  strides  bytes, multiples of the element's
    device   (DLDeviceType, number)

    BufferError for a type or strides that DLPack has not.
    """
    size = dtype.itemsize
    if dtype.kind not in _KINDS or any(stride % size for stride in strides):
        raise BufferError(f"no DLPack for {dtype} with strides of {strides} bytes")
    n = len(shape)
    sizes = (ctypes.c_int64 * n)(*shape)
    steps = (ctypes.c_int64 * n)(*(stride // size for stride in strides))
    kind = _DataType(_KINDS[dtype.kind], 8 * size, 1)
    tensor = _Tensor(address, _Device(*device), n, kind, sizes, steps, 0)
    managed = _Managed(tensor, None, _delete)
    at = ctypes.addressof(managed)
    _lent[at] = managed, sizes, steps, owner
    return _new(at, _NAME, ctypes.cast(_destruct, ctypes.c_void_p))
