"""Answers held to a JSON schema, a regular expression or a grammar, by llguidance.

It knows the bytes of every token, and says after each which may come next: those that begin
something that fits. A stop token may come where all is said.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from m40llm.engine.constraint import Constraint, Mask
from m40llm.engine.sampling_params import CONSTRAINTS, SamplingParams
from m40llm.errors import RequestError
from m40llm.text import Tokenizer


class Constraints:
    """Of one vocabulary, which llguidance reads at the first request that needs it."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._theirs: Any = None

    def of(self, params: SamplingParams) -> Constraint | None:
        """A new one for an answer; None where nothing is asked for. RequestError for a schema,
        expression or grammar that is none, with what llguidance says of it."""
        given = [name for name in CONSTRAINTS if getattr(params, name) is not None]
        if not given:
            return None
        llguidance = _library(given[0])
        if self._theirs is None:
            self._theirs = self._vocabulary(llguidance, given[0])
        try:
            grammar = _grammar(llguidance, given[0], getattr(params, given[0]))
        except UnicodeEncodeError:
            raise RequestError(f"{given[0]}: it has a lone surrogate, which is no text") from None
        matcher = llguidance.LLMatcher(self._theirs, grammar, log_level=0)
        if matcher.is_error():
            raise RequestError(f"{given[0]}: {_why(matcher)}")
        return _Matcher(matcher, -(-self._vocab_size // 32))

    def _vocabulary(self, llguidance: Any, name: str) -> Any:
        stop_ids = sorted(self._tokenizer.stop_ids)
        if not stop_ids:
            raise RequestError(f"{name}: the model has no stop token, which would end the answer")
        wrapper = llguidance.TokenizerWrapper(_Vocabulary(self._tokenizer, stop_ids[0]))
        return llguidance.LLTokenizer(wrapper, n_vocab=self._vocab_size, eos_token=stop_ids)


class _Vocabulary:
    """A tokenizer as llguidance wants it."""

    def __init__(self, tokenizer: Tokenizer, eos_id: int) -> None:
        ids = range(tokenizer.vocab_size)
        self.eos_token_id, self.bos_token_id = eos_id, tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(token_id) for token_id in ids]
        self.special_token_ids = tokenizer.special_ids
        self._encode = tokenizer.encode_inside

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)


class _Matcher:
    """Implements `Constraint`."""

    def __init__(self, matcher: Any, n_words: int) -> None:
        self._matcher, self._n_words = matcher, n_words

    def mask(self) -> Mask:
        # llguidance has a bit more than there are tokens, and so, at times, a word more.
        mask = np.frombuffer(self._matcher.compute_bitmask(), "<u4", self._n_words)
        self._check()
        return mask.astype(np.uint32, copy=False)

    def heed(self, token_id: int) -> None:
        if not self._matcher.is_stopped():  # a draft model may go on behind the end
            self._matcher.consume_token(token_id)
            self._check()

    def fork(self) -> "_Matcher":
        return _Matcher(self._matcher.deep_copy(), self._n_words)

    def _check(self) -> None:
        if self._matcher.is_error():
            raise RequestError(f"the constraint cannot go on: {_why(self._matcher)}")


def schema_fault(schema: Mapping[str, Any] | bool) -> str:
    """What llguidance says against a JSON schema; "" where it has nothing against it, or is not
    there."""
    try:
        import llguidance
    except ImportError:
        return ""
    matcher = llguidance.LLMatcher
    return str(matcher.validate_grammar(matcher.grammar_from_json_schema(json.dumps(schema))))


def _why(matcher: Any) -> str:
    """The error, without the parser's state behind it."""
    return str(matcher.get_error()).partition("<state>")[0].strip()


def _library(name: str) -> Any:
    try:
        import llguidance
    except ImportError:
        raise RequestError(f"{name}: it needs llguidance; run: pip install llguidance") from None
    return llguidance


def _grammar(llguidance: Any, name: str, value: Any) -> str:
    matcher = llguidance.LLMatcher
    if name == "regex":
        return str(matcher.grammar_from_regex(value))
    if name == "lark":
        return str(matcher.grammar_from_lark(value))
    return str(matcher.grammar_from_json_schema(json.dumps(read_schema(value))))


def read_schema(value: Mapping[str, Any] | str) -> dict[str, Any] | bool:
    """A schema, or its text. RequestError for what is none."""
    try:
        text = value if isinstance(value, str) else json.dumps(dict(value))
        schema = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise RequestError(f"json_schema: no JSON: {error}") from None
    if not isinstance(schema, dict | bool):
        raise RequestError(f"json_schema: expected an object, got {text[:80]!r}")
    return schema
