"""A JSON value followed a character at a time: which may come next, and where it ends."""

import re
from typing import Final

_SPACE: Final = " \t\n\r"
_ESCAPES: Final = '"\\/bfnrtu'
_HEX: Final = "0123456789abcdefABCDEF"
_SCALAR_CHARACTERS: Final = "0123456789+-.eEtrufalsn"
_SCALAR: Final = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?|true|false|null", re.ASCII)
_SCALAR_BEGIN: Final = re.compile(  # what a longer text could still make one of
    r"-?(0|[1-9]\d*)?|-?(0|[1-9]\d*)(\.\d*)?|-?(0|[1-9]\d*)(\.\d+)?[eE][+-]?\d*"
    r"|t(r(ue?)?)?|f(a(l(se?)?)?)?|n(u(ll?)?)?",
    re.ASCII,
)


class JsonFollower:
    """One JSON text (RFC 8259) that begins with {, [ or a quotation mark: `take` its characters
    until `is_whole`."""

    def __init__(self) -> None:
        self._open: list[str] = []  # "{" and "[" not closed yet
        self._wants = "value"  # or first value, first key, key, colon, next, string
        self._escape = ""  # of the string, as far as it has come
        self._scalar = ""
        self._is_key = False
        self.is_whole = False

    def take(self, char: str) -> bool:
        """Whether the character may come here; the follower is of no use after one that may not."""
        if self.is_whole:
            return False
        if self._wants == "string":
            return self._in_string(char)
        if self._scalar:
            if char in _SCALAR_CHARACTERS:
                self._scalar += char
                return _SCALAR_BEGIN.fullmatch(self._scalar) is not None
            if not _SCALAR.fullmatch(self._scalar):
                return False
            self._scalar, self._wants = "", "next"
        if char in _SPACE:
            return bool(self._open)
        return self._structure(char)

    def _structure(self, char: str) -> bool:
        wants = self._wants
        if wants in ("value", "first value"):
            if char == "]" and wants == "first value":
                return self._close(char)
            return self._begin(char)
        if wants in ("key", "first key"):
            if char == "}" and wants == "first key":
                return self._close(char)
            self._wants, self._is_key = "string", True
            return char == '"'
        if wants == "colon":
            self._wants = "value"
            return char == ":"
        if char == ",":
            self._wants = "key" if self._open[-1] == "{" else "value"
            return True
        return self._close(char)

    def _begin(self, char: str) -> bool:
        if char == '"':
            self._wants, self._is_key = "string", False
        elif char in ("{", "["):
            self._open.append(char)
            self._wants = "first key" if char == "{" else "first value"
        elif self._open and char in "-0123456789tfn":
            self._scalar = char
        else:
            return False
        return True

    def _close(self, char: str) -> bool:
        if char not in ("}", "]") or self._open.pop() + char not in ("{}", "[]"):
            return False
        self._end_value()
        return True

    def _end_value(self) -> None:
        self._wants, self.is_whole = "next", not self._open

    def _in_string(self, char: str) -> bool:
        if self._escape:
            return self._in_escape(char)
        if char == "\\":
            self._escape = char
        elif char == '"' and self._is_key:
            self._wants = "colon"
        elif char == '"':
            self._end_value()
        return char >= " "

    def _in_escape(self, char: str) -> bool:
        self._escape += char
        n_digits = len(self._escape) - 2  # of \uXXXX
        if n_digits == 4 or (n_digits == 0 and char != "u"):
            self._escape = ""
        return char in (_HEX if n_digits else _ESCAPES)
