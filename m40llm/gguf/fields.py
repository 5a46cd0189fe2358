"""The key-value section of a GGUF file: walking it once, decoding a value when it is asked for.

    key: string   type: u32   value
    string: u64 length, UTF-8      array: u32 item type, u64 count, items

(ggml/docs/gguf.md.) The walk checks every length against the bytes that are left and keeps
offsets only, so that a file can make us allocate no more than it holds itself.
"""

import struct
from array import array
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from gguf import GGUFValueType
from numpy.typing import NDArray

from m40llm.errors import ModelFileError, UnsupportedModelError
from m40llm.gguf.cursor import U64, Cursor, shown

Value = int | float | bool | str | list[str] | NDArray[Any]

DTYPES: dict[GGUFValueType, np.dtype[Any]] = {
    GGUFValueType.UINT8: np.dtype("<u1"),
    GGUFValueType.INT8: np.dtype("<i1"),
    GGUFValueType.UINT16: np.dtype("<u2"),
    GGUFValueType.INT16: np.dtype("<i2"),
    GGUFValueType.UINT32: np.dtype("<u4"),
    GGUFValueType.INT32: np.dtype("<i4"),
    GGUFValueType.UINT64: np.dtype("<u8"),
    GGUFValueType.INT64: np.dtype("<i8"),
    GGUFValueType.FLOAT32: np.dtype("<f4"),
    GGUFValueType.FLOAT64: np.dtype("<f8"),
    GGUFValueType.BOOL: np.dtype("<u1"),  # as bytes first: only 0 and 1 are booleans
}
_LEAST_FIELD_BYTES = 13  # an empty key (8), a type (4), a value of one byte


class Field(NamedTuple):
    """Where a value lies: bytes `start` to `stop`, checked to lie within the file."""

    type: GGUFValueType  # of the value, or of an array's items
    n_items: int | None  # None where the value is no array
    start: int  # of the value, or of an array's first item
    stop: int
    text_starts: NDArray[np.int64] | None = None  # of an array's strings

    def __str__(self) -> str:
        name = self.type.name.lower()
        return name if self.n_items is None else f"array of {self.n_items} {name}"


def walk_fields(cursor: Cursor, n_fields: int) -> dict[str, Field]:
    """Checks the structure of `n_fields` pairs; leaves the cursor behind the last one."""
    fields: dict[str, Field] = {}
    for index in range(n_fields):
        start = cursor.pos
        key = cursor.string(f"key {index} of {n_fields}")
        if not key:  # what padding read as one more key would look like
            raise ModelFileError(f"key {index} of {n_fields} at offset {start}: expected a name")
        if key in fields:
            raise ModelFileError(f"key {shown(key)} at offset {start}: the file has it twice")
        fields[key] = _walk_value(cursor, f"value of key {shown(key)}")
    return fields


def count_fields(cursor: Cursor) -> int:
    """Reads how many pairs the file claims; refuses more than its bytes can hold."""
    return cursor.count(_LEAST_FIELD_BYTES, "count of metadata keys")


def _walk_value(cursor: Cursor, what: str) -> Field:
    type_ = _value_type(cursor, what)
    if type_ is GGUFValueType.ARRAY:
        return _walk_array(cursor, what)
    if type_ is GGUFValueType.STRING:
        n_bytes = cursor.u64(f"length of {what}")
    else:
        n_bytes = DTYPES[type_].itemsize
    start = cursor.pos
    cursor.skip(n_bytes, what)
    return Field(type_, None, start, cursor.pos)


def _walk_array(cursor: Cursor, what: str) -> Field:
    type_ = _value_type(cursor, f"items of {what}")
    if type_ is GGUFValueType.ARRAY:
        raise UnsupportedModelError(
            f"{what} at offset {cursor.pos - 4}: expected numbers or strings, got nested arrays, "
            "which no known model uses"
        )
    is_string = type_ is GGUFValueType.STRING
    item_bytes = 8 if is_string else DTYPES[type_].itemsize
    n_items = cursor.count(item_bytes, f"item count of {what}")
    start = cursor.pos
    if is_string:
        text_starts = _walk_strings(cursor, n_items, what)
        return Field(type_, n_items, start, cursor.pos, text_starts)
    cursor.skip(n_items * item_bytes, what)
    return Field(type_, n_items, start, cursor.pos)


def _walk_strings(cursor: Cursor, n_items: int, what: str) -> NDArray[np.int64]:
    """Moves behind `n_items` strings; returns where their texts start, int64[n_items].

    A tight loop, since vocabularies have 400,000 of them.
    """
    unpack_from = U64.unpack_from
    data, pos, end = cursor.data, cursor.pos, len(cursor.data)
    starts = array("q")
    append = starts.append
    for index in range(n_items):
        start = pos + 8
        try:
            pos = start + unpack_from(data, pos)[0]
        except struct.error:
            raise ModelFileError(
                f"string {index} of {n_items}, {what} at offset {pos}: the file ends at {end}"
            ) from None
        if pos > end:
            raise ModelFileError(
                f"string {index} of {n_items}, {what} at offset {start - 8}: "
                f"expected {pos - start} bytes, but the file ends at {end}"
            )
        append(start)
    cursor.pos = pos
    return np.frombuffer(starts, np.int64) if starts else np.empty(0, np.int64)


def _value_type(cursor: Cursor, what: str) -> GGUFValueType:
    number = cursor.u32(f"type of {what}")
    try:
        return GGUFValueType(number)
    except ValueError:
        raise ModelFileError(
            f"{what} at offset {cursor.pos - 4}: value type {number} is unknown, "
            f"expected 0 to {max(GGUFValueType)}"
        ) from None


def decode(data: memoryview, field: Field) -> Value:
    """The value of a walked field: a fresh object that holds no part of `data`.

    Raises ModelFileError for text that is not UTF-8 and a boolean that is neither 0 nor 1.
    """
    if field.type is GGUFValueType.STRING:
        raw = bytes(data[field.start : field.stop])
        if field.text_starts is None:
            return _text(raw)
        return _strings(raw, field.text_starts - field.start)
    count = 1 if field.n_items is None else field.n_items
    values: NDArray[Any] = np.frombuffer(data, DTYPES[field.type], count, field.start).copy()
    if field.type is GGUFValueType.BOOL:
        if count and values.max() > 1:
            raise ModelFileError(f"expected a boolean, 0 or 1, got the byte {values.max()}")
        values = values.astype(np.bool_)
    if field.n_items is None:
        scalar: int | float | bool = values[0].item()
        return scalar
    values.setflags(write=False)
    return values


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise ModelFileError(f"expected UTF-8, got {error.reason} at byte {error.start}") from None


def _strings(raw: bytes, starts: NDArray[np.int64]) -> list[str]:
    """The texts that start at `starts`, the lengths before them still between them.

    One decode and one split for all, five times as fast as one by one: the lengths become
    separators of 8 NULs. That is right where no text holds a NUL (8 a text is all there are) and
    no length passes 16 bits (else a byte of it is left). NUL is never part of a longer
    character, so one decode judges every text.
    """
    data = np.frombuffer(raw, np.uint8).copy()
    data[starts - 8] = 0
    data[starts - 7] = 0
    if np.count_nonzero(data) == data.size - 8 * starts.size:
        with suppress(UnicodeDecodeError):  # one by one finds which
            return data.tobytes().decode().split("\0" * 8)[1:]
    return _strings_one_by_one(raw, starts)


def _strings_one_by_one(raw: bytes, starts: NDArray[np.int64]) -> list[str]:
    firsts = starts.tolist()
    stops = [first - 8 for first in firsts[1:]] + [len(raw)]
    strings: list[str] = []
    try:
        for first, stop in zip(firsts, stops, strict=True):
            strings.append(raw[first:stop].decode())  # its length tells which one failed
    except UnicodeDecodeError as error:
        raise ModelFileError(
            f"string {len(strings)}: expected UTF-8, got {error.reason} at byte {error.start}"
        ) from None
    return strings
