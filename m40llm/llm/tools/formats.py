"""ToolFormat: a model's own way of calling tools, on both sides of the model."""

import secrets
import string
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from importlib.util import find_spec
from typing import Any, Final

from m40llm.engine.sampling_params import SamplingParams
from m40llm.errors import M40LLMError, RequestError
from m40llm.llm.constraint import read_schema, schema_fault
from m40llm.llm.results import Completion, StreamItem
from m40llm.llm.tools.definitions import Tool, read_choice, read_tools
from m40llm.llm.tools.events import gathered
from m40llm.llm.tools.grammar import THOUGHT_END, arguments_schema, grammar
from m40llm.llm.tools.layouts import LAYOUTS, Layout, layout_of
from m40llm.llm.tools.messages import Messages, readable_messages, tool_variables
from m40llm.llm.tools.parser import ToolParser
from m40llm.text import Tokenizer

_LETTERS: Final = string.ascii_letters + string.digits


def tools_of(tokenizer: Tokenizer) -> "ToolFormat | None":
    """The format that the model's chat template speaks; None where it knows no tools, or no format
    that is known here."""
    template = tokenizer.tool_template or tokenizer.chat_template
    layout = None if template is None else layout_of(template)
    return None if layout is None else ToolFormat(tokenizer, layout)


def tool_format(tokenizer: Tokenizer) -> "ToolFormat":
    """The same; RequestError where there is none."""
    found = tools_of(tokenizer)
    if found is None:
        known = ", ".join(layout.name for layout in LAYOUTS)
        raise RequestError(
            "tools: the model's chat template has no tools, or calls them in a way that is not "
            f"known here (known are {known}); take a model that was trained on tools, such as "
            "Qwen3 or Llama 3.2, or describe them in a message and ask for JSON with a schema"
        )
    return found


def check_beside(fields: Mapping[str, Any]) -> None:
    """RequestError for fields of SamplingParams that tools leave no room for."""
    for name in ("regex", "lark"):
        if fields.get(name) is not None:
            raise RequestError(f"{name}: expected none beside tools, unless tool_choice is none")


class ToolFormat:
    """`tools`, `choice`: as OpenAI's API has tools and tool_choice. RequestError names in every
    method what is wrong with them."""

    def __init__(self, tokenizer: Tokenizer, layout: Layout) -> None:
        self.name = layout.name
        self._tokenizer, self._layout = tokenizer, layout
        self._plain_template = tokenizer.chat_template or ""
        self._template = tokenizer.tool_template or self._plain_template

    def __repr__(self) -> str:
        return f"<ToolFormat {self.name}>"

    def prompt_variables(self, tools: Any, choice: Any, messages: Messages) -> dict[str, Any]:
        """What `Tokenizer.encode_chat` is to be called with: messages, and the tools under the
        names that the template reads. Where the choice is "none", the model sees no tools."""
        read = read_tools(tools)
        shown = () if read_choice(choice, read).mode == "none" else read
        template = self._template if shown else self._plain_template
        readable = readable_messages(template, self._layout, messages, shown)
        return {"messages": readable, **tool_variables(template, shown)}

    def constraint(
        self,
        tools: Any,
        choice: Any,
        parallel: bool = True,
        schema: Mapping[str, Any] | str | None = None,
    ) -> dict[str, Any]:
        """Fields of SamplingParams. With a "required" choice or a named tool, the answer is calls,
        one or (parallel) more, with arguments of the tool's schema; with "auto" it is text, or
        text up to such calls (without llguidance: anything). With "none" nothing is asked.

        schema  what the answer is where it is no call, instead of text: JSON of this schema. No
                words stand before calls then, and no thought
        """
        read = read_tools(tools)
        chosen = read_choice(choice, read)
        if chosen.mode == "auto" and schema is not None and self._layout.is_bare:
            raise RequestError(
                "json_schema: expected none beside tools: calls of this model are JSON, too, "
                "not to be told from the answer; or tool_choice none or required"
            )
        is_free = chosen.mode == "auto" and schema is None and find_spec("llguidance") is None
        if chosen.mode == "none" or is_free:
            return {} if schema is None else {"json_schema": schema}
        ids = self._control_ids
        for tool in chosen.tools:
            self._check_schema(tool, read.index(tool))
        known = {*ids.values(), *self._tokenizer.stop_ids}
        silent = [i for i in self._tokenizer.special_ids if i not in known]
        of_format = (self._layout, ids, chosen, parallel, silent)
        if schema is None:
            return {"lark": grammar(*of_format, is_thinking=self._is_thinking)}
        answer = read_schema(schema)
        if why := schema_fault(answer):
            raise RequestError(f"json_schema: {' '.join(why.split())}")
        return {"lark": grammar(*of_format, schema=answer), "json_schema": None}

    def constrained(
        self, params: SamplingParams | None, tools: Any, choice: Any, parallel: bool = True
    ) -> SamplingParams:
        """The same request with the constraint; its json_schema is of answers without calls."""
        params = SamplingParams() if params is None else params
        fields = self.constraint(tools, choice, parallel, params.json_schema)
        if fields:
            check_beside(vars(params))
        return replace(params, **fields)

    def parsed(
        self,
        completion: Completion,
        items: Iterable[StreamItem],
        tools: Any,
        choice: Any,
        *,
        at_once: bool = False,
    ) -> Completion:
        """The same answer, whose items are at hand, with its calls beside its text."""
        parser = self.parser(tools, choice, at_once=at_once)
        events = [event for item in items for event in parser.push(item.text, item.token_id)]
        text, calls = gathered(events + parser.finish())
        return replace(completion, text=text, tool_calls=calls)

    def parser(
        self,
        tools: Any = None,
        choice: Any = None,
        new_id: Callable[[], str] | None = None,
        *,
        at_once: bool = False,
    ) -> ToolParser:
        """A new one for each answer. Where `tools` are given, a call of another name is text; all
        is text where the choice is "none".

        at_once  an answer that does not begin with a call has none, as beside a json_schema
        """
        read = read_tools(tools)
        names = None
        if tools is not None:
            chosen = read_choice(choice, read)
            names = {tool.name for tool in chosen.tools} if chosen.mode != "none" else set()
        ids = self._control_ids
        marks = {ids[mark]: mark for mark in self._layout.marks if mark in ids}
        return ToolParser(self._layout, marks, names, new_id or self._new_id, at_once=at_once)

    def _check_schema(self, tool: Tool, n: int) -> None:
        if why := schema_fault(arguments_schema(tool)):
            hint = " (strict true: every word of it must be enforced)" if tool.strict else ""
            said = " ".join(why.split())
            raise RequestError(f"tools[{n}].function.parameters: {said}{hint}")

    def _new_id(self) -> str:
        n_letters, head = (9, "") if self._layout.short_ids else (24, "call_")
        return head + "".join(secrets.choice(_LETTERS) for _ in range(n_letters))

    @cached_property
    def _control_ids(self) -> dict[str, int]:
        """The marks that are control tokens, which come without text."""
        found = {}
        for mark in (*self._layout.marks, THOUGHT_END):
            ids = self._tokenizer.encode(mark, add_bos=False, parse_special=True)
            if len(ids) == 1 and self._tokenizer.is_special(ids[0]):
                found[mark] = ids[0]
        return found

    @cached_property
    def _is_thinking(self) -> bool:
        """Whether the prompt ends where the model has begun to think, as Qwen3-Thinking's does."""
        try:
            prompt = self._tokenizer.apply_chat_template([{"role": "user", "content": "?"}])
        except M40LLMError:
            return False
        return prompt.rstrip().endswith("<think>")
