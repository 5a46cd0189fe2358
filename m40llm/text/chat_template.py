"""Chat templates: messages to the prompt that the model was trained on, by the file's Jinja."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from threading import Lock
from typing import Any, Final, NoReturn

from jinja2 import Template, TemplateError, TemplateSyntaxError

from m40llm.errors import M40LLMError, ModelFileError, RequestError
from m40llm.text.sandbox import MAX_CHARS, BoundedEnvironment, size_of

_KEY: Final = "key 'tokenizer.chat_template'"
MAX_SOURCE_CHARS: Final = 400_000  # the longest known have some 30,000


class ChatTemplate:
    """One template; compiled at its first use, rendered by one thread at a time."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self._source = source
        self._special_tokens = dict(special_tokens)  # bos_token, eos_token, ... -> their text
        self._lock = Lock()

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool,
        variables: Mapping[str, Any],
    ) -> str:
        """The prompt; errors as `Tokenizer.apply_chat_template` states them."""
        check_messages(messages)
        values = {"tools": None, "documents": None, **self._special_tokens, **variables}
        values |= {"messages": list(messages), "add_generation_prompt": add_generation_prompt}
        with self._lock:
            self._environment.start(size_of(values, 100 * MAX_CHARS))
            try:
                return self._template.render(values)
            except M40LLMError:
                raise
            except Exception as error:  # the template's own code can raise anything
                raise ModelFileError(f"{_KEY}: {type(error).__name__}: {error}") from None

    @cached_property
    def _environment(self) -> BoundedEnvironment:
        environment = BoundedEnvironment()
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        environment.filters["tojson"] = _tojson
        environment.guard_filters()
        return environment

    @cached_property
    def _template(self) -> Template:
        if len(self._source) > MAX_SOURCE_CHARS:
            raise ModelFileError(
                f"{_KEY}: expected at most {MAX_SOURCE_CHARS} characters, got {len(self._source)}"
            )
        try:
            return self._environment.from_string(self._source)
        except TemplateSyntaxError as error:
            raise ModelFileError(f"{_KEY}: line {error.lineno}: {error.message}") from None
        except (TemplateError, SyntaxError, RecursionError, MemoryError, ValueError) as error:
            raise ModelFileError(f"{_KEY}: cannot be compiled: {error}") from None


def check_messages(messages: object) -> None:
    """RequestError where they are none: a list of mappings with roles and contents."""
    if isinstance(messages, str | bytes) or not isinstance(messages, Sequence):
        raise RequestError(f"messages: expected a list, got {type(messages).__name__}")
    if not messages:
        raise RequestError("messages: empty; a chat needs at least one message")
    for position, message in enumerate(messages):
        if not isinstance(message, Mapping):
            got = type(message).__name__
            raise RequestError(f"messages[{position}]: expected a mapping, got {got}")
        if not isinstance(message.get("role"), str):
            raise RequestError(
                f"messages[{position}]['role']: expected str, got {message.get('role')!r}"
            )
        if not message.keys() & {"content", "tool_calls"}:
            raise RequestError(f"messages[{position}]: expected a key 'content', got none")


def _raise_exception(message: object) -> NoReturn:
    """What templates call to refuse messages, e.g. two user turns in a row."""
    raise RequestError(f"messages: the chat template says: {message}")


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers defines it: Jinja's own would write HTML escapes."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
