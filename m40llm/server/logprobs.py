"""Log-probabilities of an answer's tokens, in the two forms that OpenAI has for them."""

from collections.abc import Sequence
from typing import Any

from m40llm.llm.results import StreamItem, TokenLogprob
from m40llm.text import Tokenizer

Token = StreamItem | TokenLogprob


def of_chat(tokenizer: Tokenizer, token: Token) -> dict[str, Any]:
    """{"token", "logprob", "bytes", "top_logprobs"}."""
    one = _entry(tokenizer, token.token_id, token.logprob)
    one["top_logprobs"] = [_entry(tokenizer, *of_top) for of_top in token.top]
    return one


def _entry(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    spelled = tokenizer.token_bytes(token_id)
    text = spelled.decode("utf-8", "replace")
    return {"token": text, "logprob": _finite(logprob), "bytes": list(spelled)}


class TextLogprobs:
    """Of text completions: four lists, with the places of the tokens in the text.

    tokens that are no UTF-8 by themselves are spelled "bytes:\\\\xe2\\\\x82", as OpenAI does it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._at = tokenizer, 0
        self._decoder = tokenizer.stream_decoder(continuing=True)

    def of(self, tokens: Sequence[Token]) -> dict[str, list[Any]]:
        """Of the next tokens."""
        found: dict[str, list[Any]] = {
            name: [] for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        }
        for token in tokens:
            found["tokens"].append(self._spelled(token.token_id))
            found["token_logprobs"].append(_finite(token.logprob))
            # The chosen token is among them, whether it is one of the likeliest or not.
            top = {self._spelled(token_id): _finite(value) for token_id, value in token.top}
            top.setdefault(self._spelled(token.token_id), _finite(token.logprob))
            found["top_logprobs"].append(top)
            found["text_offset"].append(self._at)
            self._at += len(self._decoder.push(token.token_id))
        return found

    def _spelled(self, token_id: int) -> str:
        spelled = self._tokenizer.token_bytes(token_id)
        try:
            return spelled.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)


def _finite(logprob: float) -> float:
    """JSON has no -inf; OpenAI says -9999 for what is that unlikely."""
    return max(logprob, -9999.0)
