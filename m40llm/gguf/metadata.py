"""The metadata of a model file, as a mapping and as typed, validated getters.

    metadata["general.name"]                                  any value, whatever its type
    metadata.get_int("llama.block_count", minimum=1)          an int, or ModelFileError

A getter names the key, what was wanted and what came. Without a default the key must be there.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final, NoReturn, TypeVar

import numpy as np
from gguf import GGUFValueType
from numpy.typing import NDArray

from m40llm.errors import ModelFileError, RequestError
from m40llm.gguf.cursor import shown
from m40llm.gguf.fields import DTYPES, Field, Value, decode

T = TypeVar("T")


class _Required:
    """The type of `REQUIRED`, the default of a key that has none."""


REQUIRED: Final = _Required()
_FLOATS = {GGUFValueType.FLOAT32, GGUFValueType.FLOAT64}
_INTS = set(DTYPES) - _FLOATS - {GGUFValueType.BOOL}
_BOOLS = {GGUFValueType.BOOL}
_STRINGS = {GGUFValueType.STRING}


class Metadata(Mapping[str, Value]):
    """Key-value pairs in file order; a value is decoded each time it is read.

    Scalars come as int, float, bool and str, numeric arrays as read-only NumPy arrays, string
    arrays as lists. Values are copies and outlive the file; reading after `close` is a
    RequestError. Text that is not UTF-8 is a ModelFileError that names the key.
    """

    def __init__(self, data: memoryview, fields: dict[str, Field], source: str) -> None:
        self._data: memoryview | None = data
        self._fields = fields
        self._source = source

    def __getitem__(self, key: str) -> Value:
        return self._read(key, self._fields[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __contains__(self, key: object) -> bool:  # Mapping's own would decode the value
        return key in self._fields

    def __repr__(self) -> str:
        return f"<Metadata of {self._source}: {len(self)} keys>"

    def close(self) -> None:
        """Lets go of the file's bytes; `GGUFFile.close` calls it."""
        self._data = None

    def refuse(
        self, key: str, wanted: str, got: str, kind: type[ModelFileError] = ModelFileError
    ) -> NoReturn:
        """Raises the error of a key whose value will not do; for callers' own checks too."""
        raise kind(f"{self._source}: key {shown(key)}: expected {wanted}, got {got}")

    def n_items(self, key: str) -> int | None:
        """Length of an array without decoding it; None where the key is absent or no array."""
        field = self._fields.get(key)
        return field.n_items if field else None

    def n_strings(self, key: str) -> int:
        """Length of an array of strings without decoding it; ModelFileError for anything else."""
        field = self._fields.get(key)
        if field is None or field.n_items is None or field.type not in _STRINGS:
            self.refuse(key, "an array of strings", self._described(key))
        return field.n_items

    def get_int(
        self,
        key: str,
        default: T | _Required = REQUIRED,
        *,
        minimum: int | None = None,
        maximum: int | None = None,
    ) -> int | T:
        """An integer of any width, within the bounds given (inclusive)."""
        wanted = "an integer" + _bounds(minimum, maximum)
        field = self._fields.get(key)
        if field is None:
            return self._absent(key, wanted, default)
        value = self._scalar(key, field, _INTS, wanted)
        if (minimum is not None and value < minimum) or (maximum is not None and value > maximum):
            self.refuse(key, wanted, f"{value}")
        return int(value)

    def get_float(
        self,
        key: str,
        default: T | _Required = REQUIRED,
        *,
        minimum: float | None = None,
        maximum: float | None = None,
    ) -> float | T:
        """A finite number, within the bounds given (inclusive); an integer will do."""
        wanted = "a finite number" + _bounds(minimum, maximum)
        field = self._fields.get(key)
        if field is None:
            return self._absent(key, wanted, default)
        value = float(self._scalar(key, field, _FLOATS | _INTS, wanted))
        too_low = minimum is not None and value < minimum
        if not math.isfinite(value) or too_low or (maximum is not None and value > maximum):
            self.refuse(key, wanted, f"{value:g}")
        return value

    def get_bool(self, key: str, default: T | _Required = REQUIRED) -> bool | T:
        """A boolean; numbers are refused."""
        field = self._fields.get(key)
        if field is None:
            return self._absent(key, "a boolean", default)
        return bool(self._scalar(key, field, _BOOLS, "a boolean"))

    def get_str(self, key: str, default: T | _Required = REQUIRED) -> str | T:
        """A text."""
        field = self._fields.get(key)
        if field is None:
            return self._absent(key, "a string", default)
        return str(self._scalar(key, field, _STRINGS, "a string"))

    def get_strings(self, key: str, default: T | _Required = REQUIRED) -> list[str] | T:
        """An array of texts, as a new list."""
        wanted = "an array of strings"
        field = self._fields.get(key)
        if field is None:
            return self._absent(key, wanted, default)
        value = self._array(key, field, _STRINGS, wanted)
        assert isinstance(value, list)
        return value

    def get_ints(self, key: str, default: T | _Required = REQUIRED) -> NDArray[np.int64] | T:
        """An array of integers of any width, as int64[n], read-only."""
        wanted = "an array of integers"
        field = self._fields.get(key)
        if field is None:
            return self._absent(key, wanted, default)
        array = np.asarray(self._array(key, field, _INTS, wanted))
        if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
            self.refuse(key, f"{wanted} below 2^63", str(array.max()))
        array = array.astype(np.int64)
        array.setflags(write=False)
        return array

    def get_floats(self, key: str, default: T | _Required = REQUIRED) -> NDArray[Any] | T:
        """An array of floating-point numbers without NaN, float32[n] or float64[n], read-only."""
        wanted = "an array of floats"
        field = self._fields.get(key)
        if field is None:
            return self._absent(key, wanted, default)
        array = np.asarray(self._array(key, field, _FLOATS, wanted))
        if np.isnan(array).any():
            self.refuse(key, f"{wanted} without NaN", f"NaN at index {np.isnan(array).argmax()}")
        return array

    def _read(self, key: str, field: Field) -> Value:
        if self._data is None:
            raise RequestError(f"{self._source}: closed, key {shown(key)} can no longer be read")
        try:
            return decode(self._data, field)
        except ModelFileError as error:
            raise ModelFileError(f"{self._source}: key {shown(key)}: {error}") from None

    def _scalar(self, key: str, field: Field, types: set[GGUFValueType], wanted: str) -> Any:
        if field.n_items is not None or field.type not in types:
            self.refuse(key, wanted, self._described(key))
        return self._read(key, field)

    def _array(self, key: str, field: Field, types: set[GGUFValueType], wanted: str) -> Value:
        if field.n_items is None or field.type not in types:
            self.refuse(key, wanted, self._described(key))
        return self._read(key, field)

    def _described(self, key: str) -> str:
        """What the file has under a key: its type, and its value where that is short."""
        field = self._fields.get(key)
        if field is None:
            return "nothing: the key is missing"
        if field.n_items is not None or field.stop - field.start > 256:
            return str(field)
        value = self._read(key, field)
        return f"{field} {shown(value) if isinstance(value, str) else value}"

    def _absent(self, key: str, wanted: str, default: T | _Required) -> T:
        if isinstance(default, _Required):
            self.refuse(key, wanted, self._described(key))
        return default


def _bounds(minimum: float | None, maximum: float | None) -> str:
    if minimum is not None and maximum is not None:
        return f" from {minimum} to {maximum}"
    if minimum is not None:
        return f" of at least {minimum}"
    return "" if maximum is None else f" of at most {maximum}"
