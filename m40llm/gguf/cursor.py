"""A reading position in a buffer that never passes the buffer's end.

All reading of GGUF structure goes through it, so that no length in the file is believed
before it was compared with the bytes that are left. Integers are little-endian.
"""

import struct

from m40llm.errors import ModelFileError

U64 = struct.Struct("<Q")
_U32 = struct.Struct("<I")
_SHOWN = 80  # characters of a name in an error text; a broken file may hold megabytes of it


def shown(name: str) -> str:
    """The name as an error text shows it: quoted, control characters escaped, cut to length."""
    return repr(name) if len(name) <= _SHOWN else repr(name[:_SHOWN]) + "..."


class Cursor:
    """Reads `data` from `pos` on; every read names `what` it wants, for the error text."""

    def __init__(self, data: memoryview, pos: int = 0) -> None:
        self.data = data
        self.pos = pos

    @property
    def n_left(self) -> int:
        """Bytes between the position and the end of the buffer."""
        return len(self.data) - self.pos

    def need(self, n_bytes: int, what: str) -> None:
        """ModelFileError unless `n_bytes` are left."""
        if n_bytes > self.n_left:
            raise ModelFileError(
                f"{what} at offset {self.pos}: expected {n_bytes} bytes, "
                f"but only {self.n_left} are left in the file of {len(self.data)}"
            )

    def skip(self, n_bytes: int, what: str) -> None:
        """Moves on by `n_bytes`."""
        self.need(n_bytes, what)
        self.pos += n_bytes

    def u32(self, what: str) -> int:
        """Reads an unsigned 32-bit integer."""
        self.need(4, what)
        value: int = _U32.unpack_from(self.data, self.pos)[0]
        self.pos += 4
        return value

    def u64(self, what: str) -> int:
        """Reads an unsigned 64-bit integer."""
        self.need(8, what)
        value: int = U64.unpack_from(self.data, self.pos)[0]
        self.pos += 8
        return value

    def string(self, what: str) -> str:
        """Reads a length (64 bits) and as many bytes of UTF-8."""
        start = self.pos
        n_bytes = self.u64(f"length of {what}")
        self.need(n_bytes, what)
        raw = self.data[self.pos : self.pos + n_bytes]
        self.pos += n_bytes
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError as error:
            raise ModelFileError(f"{what} at offset {start}: not UTF-8 ({error.reason})") from None

    def count(self, least_bytes: int, what: str) -> int:
        """Reads how many items follow, each of `least_bytes` or more; they must fit."""
        start = self.pos
        n_items = self.u64(what)
        if n_items * least_bytes > self.n_left:
            raise ModelFileError(
                f"{what} at offset {start}: the file claims {n_items}, but the {self.n_left} bytes "
                f"that are left hold at most {self.n_left // least_bytes}"
            )
        return n_items
