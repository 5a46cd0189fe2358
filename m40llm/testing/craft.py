"""GGUF bytes put together from pieces, none of which is checked: for files that are broken.

    build_gguf_bytes(
        fields=[field("general.architecture", GGUFValueType.STRING, "llama")],
        tensors=[tensor_info("t", [4], GGMLQuantizationType.F32, 0)],
        data=bytes(16),
    )

Everything that a file claims (counts, lengths, types, offsets) can be claimed wrongly here.
"""

import struct
from collections.abc import Sequence

from gguf import GGUFValueType

Scalar = int | float | bool | str | bytes

_FORMATS = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.FLOAT64: "<d",
    GGUFValueType.BOOL: "<B",  # so that a boolean of 2 can be written
}


def gguf_string(text: str | bytes, length: int | None = None) -> bytes:
    """A length (64 bits; `length` claims another than the true one) and the text."""
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def field(key: str | bytes, type: int, value: Scalar) -> bytes:
    """A key with one value; raw bytes stand as they are where no string is wanted."""
    return gguf_string(key) + struct.pack("<I", type) + _payload(type, value)


def array_field(
    key: str | bytes, item_type: int, items: Sequence[Scalar], n_items: int | None = None
) -> bytes:
    """A key with an array; `n_items` claims another length than the true one."""
    count = len(items) if n_items is None else n_items
    head = struct.pack("<IIQ", GGUFValueType.ARRAY, item_type, count)
    return gguf_string(key) + head + b"".join(_payload(item_type, item) for item in items)


def tensor_info(
    name: str | bytes, dims: Sequence[int], type: int, offset: int, n_dims: int | None = None
) -> bytes:
    """An entry of the tensor directory; `dims` as GGUF lists them, innermost first."""
    count = len(dims) if n_dims is None else n_dims
    head = gguf_string(name) + struct.pack("<I", count)
    return head + struct.pack(f"<{len(dims)}QIQ", *dims, type, offset)


def build_gguf_bytes(
    fields: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_fields: int | None = None,
    n_tensors: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A whole file: header, fields, tensor directory, padding to `alignment`, tensor data.

    The counts default to the true ones. `alignment` only pads: the key is one of `fields`.
    """
    counts = (
        len(tensors) if n_tensors is None else n_tensors,
        len(fields) if n_fields is None else n_fields,
    )
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join(fields) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + data


def _payload(type: int, value: Scalar) -> bytes:
    if type == GGUFValueType.STRING:
        assert isinstance(value, str | bytes)
        return gguf_string(value)
    if isinstance(value, bytes):
        return value
    return struct.pack(_FORMATS[GGUFValueType(type)], value)
