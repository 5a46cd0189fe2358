"""Token ids to text, one at a time, never half a character."""

from codecs import getincrementaldecoder
from collections.abc import Callable

PieceOf = Callable[[int], tuple[bytes, bool, bool]]  # bytes, is special, a space was put behind it


class StreamDecoder:
    """Turns tokens into text as they come; made by `Tokenizer.stream_decoder`.

    A character that is spread over tokens comes with its last one. Bytes that cannot become a
    character any more come as U+FFFD at once, an unfinished one at `flush`.
    """

    def __init__(
        self, piece_of: PieceOf, skip_special: bool, space_prefix: bool, at_start: bool
    ) -> None:
        self._piece_of = piece_of
        self._skip_special = skip_special
        self._space_prefix = space_prefix
        self._drop_space = space_prefix and at_start
        self._utf8 = getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that this token completes, "" where it completes none.

        RequestError where the id is outside the vocabulary.
        """
        piece, is_special, space_follows = self._piece_of(token_id)
        if self._drop_space and not space_follows:
            piece = piece.removeprefix(b" ")
        self._drop_space = self._space_prefix and space_follows
        if self._skip_special and is_special:
            piece = b""
        return self._utf8.decode(piece)

    def flush(self) -> str:
        """U+FFFD for a character that was left unfinished, else "". The decoder starts anew."""
        return self._utf8.decode(b"", final=True)
