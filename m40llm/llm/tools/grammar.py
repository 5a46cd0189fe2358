"""A Lark grammar, in llguidance's dialect, of answers that call tools.

What stands around the arguments is written as the model's template writes it, the arguments as
their schema wants them. A space may stand behind marks: spm vocabularies have one behind control
tokens, which decoding takes away. For llguidance 1.9: docs/syntax.md (lazy lexemes, special
tokens, %json) and docs/json_schema.md ("x-guidance") of github.com/guidance-ai/llguidance.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Final

from m40llm.llm.tools.definitions import Choice, Tool
from m40llm.llm.tools.layouts import Layout

THOUGHT_END: Final = "</think>"
_ANYTHING: Final = "/(?s:.*)/"
_NO_BARE_CALL: Final = r'/(?s:.*)/ & ~/(?s:[ \t\n\r]*\{[ \t\n\r]*"name".*)/'
_WRITTEN: Final = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
_COMBINING: Final = {  # beside one of these, `properties` need not be all that there is
    "additionalProperties", "unevaluatedProperties", "patternProperties", "$ref", "allOf", "anyOf",
    "oneOf", "if", "not",
}  # fmt: skip


def grammar(
    layout: Layout,
    control_ids: Mapping[str, int],
    choice: Choice,
    parallel: bool,
    silent_ids: Sequence[int],
    is_thinking: bool = False,
    schema: Mapping[str, Any] | bool | None = None,
) -> str:
    """Of an answer that is one call, or some in `parallel`; where the choice is "auto", text may
    come before it or alone.

    control_ids  the layout's marks that are control tokens
    silent_ids   control tokens that may come between words
    is_thinking  a thought, which the prompt has begun, may come before what has to come
    schema       of an answer that is no call, instead of text
    """
    marks = (*layout.marks, THOUGHT_END)
    lark_of = {m: f"<[{control_ids[m]}]>" if m in control_ids else json.dumps(m) for m in marks}
    is_free = choice.mode == "auto" and schema is None
    if is_free:
        rules = [*_openings(layout, control_ids, silent_ids)]
    else:
        opened = "" if layout.is_bare else lark_of[layout.opens[0]]
        thought = "thought? " if is_thinking and opened else ""
        answer = "answer | " if choice.mode == "auto" else ""
        rules = [f"start: {thought}({answer}{opened} calls)"]
        rules += [f"answer: %json {json.dumps(schema)}"] if answer else []
        rules += _thought(layout, lark_of[THOUGHT_END]) if thought else []
    rules += _calls(layout, lark_of, parallel, len(choice.tools))
    for n, tool in enumerate(choice.tools):
        rules += _call(layout, lark_of, tool, n, spaced=is_free and layout.is_bare)
    return "\n".join(rules) + "\n"


def _openings(
    layout: Layout, control_ids: Mapping[str, int], silent_ids: Sequence[int]
) -> Iterator[str]:
    """Text up to the first call, or to the end. A mark that is a control token may be spelled out,
    too: the parser takes it for one."""
    opens = [f"before TEXT <[{control_ids[m]}]> calls" for m in layout.opens if m in control_ids]
    lazy = [f"before open{n} calls" for n in range(len(layout.opens))]
    bare = ["calls"] if layout.is_bare else []
    yield "start: " + " | ".join(["before TEXT", *opens, *lazy, *bare])
    yield f"before: (TEXT <[{_ranges(silent_ids)}]>)*" if silent_ids else 'before: ""'
    for n, mark in enumerate(layout.opens):
        yield f"open{n}[lazy]: TEXT {json.dumps(mark)}"
    yield f"TEXT: {_NO_BARE_CALL if layout.is_bare else _ANYTHING}"


def _thought(layout: Layout, end: str) -> Iterator[str]:
    """Thoughts up to their end, which open no call."""
    marks = "|".join(re.escape(mark) for mark in layout.opens)
    yield f"THOUGHT: {_ANYTHING} & ~/(?s:.*)({marks})(?s:.*)/"
    if end.startswith("<"):
        yield f"thought: THOUGHT {end} /[ \\n]*/"
    else:
        yield f"thought: thinking /[ \\n]*/\nthinking[lazy]: THOUGHT {end}"


def _calls(
    layout: Layout, lark_of: Mapping[str, str], parallel: bool, n_tools: int
) -> Iterator[str]:
    closed = "" if layout.is_bare or not layout.closes else lark_of[layout.closes[0]]
    one = " | ".join(f"call{n}" for n in range(n_tools))
    if layout.is_list:
        more = '(", " one)*' if parallel else ""
        yield f'calls: /[ \\n]?/ "[" one {more} "]" {closed}'
    elif parallel and layout.between is not None:
        parted = "/ ?\\n/" if layout.between else ""
        yield f"calls: one ({parted} {lark_of[layout.opens[0]]} one)*"
    else:
        yield "calls: one"
    if closed and not layout.is_list:
        yield f"one: / ?\\n?/ ({one}) /\\n?/ {closed}"
    else:
        yield f"one: {one}"


def _call(
    layout: Layout, lark_of: Mapping[str, str], tool: Tool, n: int, *, spaced: bool
) -> Iterator[str]:
    """HEAD is a terminal: what text may begin with, too, is told apart by the lexer."""
    space = "/[ \\t\\n\\r]*/ " if spaced else ""
    if layout.args_mark:
        yield f"call{n}: HEAD{n} {lark_of[layout.args_mark]} / ?/ args{n}"
        yield f"HEAD{n}: / ?/ {json.dumps(tool.name)}"
    else:
        head = json.dumps(f'{{"name": "{tool.name}", "{layout.key}": ')
        yield f'call{n}: HEAD{n} args{n} "}}"'
        yield f"HEAD{n}: {space}{head}"
    yield f"args{n}: %json {json.dumps(arguments_schema(tool))}"


def arguments_schema(tool: Tool) -> dict[str, Any]:
    """The tool's schema as the grammar has it: arguments that it does not name are left out, and
    where it is not strict, keywords that llguidance does not know."""
    schema = dict(tool.parameters)
    if "properties" in schema and not schema.keys() & _COMBINING:
        schema["additionalProperties"] = False
    options = _WRITTEN if tool.strict else {**_WRITTEN, "lenient": True}
    return {"x-guidance": options, **schema}


def _ranges(ids: Sequence[int]) -> str:
    """1,2,3,7 as 1-3,7"""
    runs = groupby(enumerate(sorted(ids)), key=lambda at: at[1] - at[0])
    ends = [[token_id for _, token_id in run] for _, run in runs]
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in ends)
