"""A Jinja environment for templates from strangers: no way into Python, bounded work and memory.

Jinja's ImmutableSandboxedEnvironment keeps a template away from Python's inside, but lets it loop
and grow. Here every loop turn, call, filter, operator, slice and output is counted against a
budget, and what could grow in one step is estimated before it is done. The syntax tree is changed
for that where Jinja offers no hook: `~`, slices and loop bodies become calls of this environment.
"""

import re
import time
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Any, Final, NoReturn

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_CHARS: Final = 4_000_000  # of one value, and of the prompt, beyond what the messages hold
MAX_WORK: Final = 20_000_000  # units: a character made, or a hundredth of a step
STEP_WORK: Final = 100
MAX_SECONDS: Final = 1.5  # of this thread's processor time
MAX_INT: Final = 100_000  # an argument: Jinja's own limit for range()
MAX_INT_BITS: Final = 4096

_FORBIDDEN_METHODS: Final = {"expandtabs", "format_map", "maketrans", "to_bytes", "translate"}
_DROPPED_FILTERS: Final = ("pprint", "urlize", "wordwrap", "xmlattr")
_LISTING_FILTERS: Final = {  # they hand on their items and write none of them out
    "attr", "batch", "count", "d", "default", "dictsort", "first", "groupby", "items", "last",
    "length", "list", "map", "max", "min", "random", "reject", "rejectattr", "reverse", "select",
    "selectattr", "slice", "sort", "sum", "unique",
}  # fmt: skip
_NUMBER: Final = re.compile(r"\d+")  # a width or precision in a format string
_LONG_NUMBER: Final = re.compile(r"\d{6}")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """One render at a time; `start` opens its budget."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # constant folding would work outside any budget
            finalize=self.output,
            extensions=["jinja2.ext.loopcontrols", GenerationBlocks],
        )
        del self.globals["lipsum"]
        for name in _DROPPED_FILTERS:
            del self.filters[name]
        self.start(0)

    def start(self, n_chars: int) -> None:
        """A new budget, for messages of so many characters."""
        self._max_chars = MAX_CHARS + 8 * n_chars
        self._work_left = MAX_WORK + 64 * n_chars
        self._deadline = time.thread_time() + MAX_SECONDS

    def guard_filters(self) -> None:
        """Wraps all filters; to be called once they are complete."""
        self.filters = {n: self._guarded_filter(n, f) for n, f in self.filters.items()}

    # What the compiled template calls.

    def turn(self, n_chars: int) -> str:
        """One turn of a loop, whose body holds so many characters of plain text."""
        self._charge(n_chars)
        return ""

    def output(self, value: Any) -> Any:
        """`{{ value }}`"""
        self._charge(self._bounded_size(value))
        return value

    def joined(self, *values: Any) -> str:
        """`a ~ b ~ c`"""
        self._bounded_size(values)
        text = "".join([str(value) for value in values])
        self._made(text)
        return text

    def cut(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        """`value[start:stop:step]`"""
        return self._made(value[slice(start, stop, step)])

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Any call in a template, macros included."""
        self._check_ints(args, kwargs)
        if not isinstance(obj, Macro | LoopContext):
            self._check_method(obj, args, kwargs)
        return self._made(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """`+`, `*`, `**` and `%`, measured before they are done."""
        is_int = isinstance(left, int) and isinstance(right, int)
        if is_int and operator in ("*", "**"):
            n_bits = left.bit_length() * right if operator == "**" else left.bit_length()
            if n_bits + right.bit_length() > MAX_INT_BITS:
                self._stop("it makes a number of thousands of digits")
        elif operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(times, int) and not isinstance(value, int | float):
                    self._check_chars(self._bounded_size(value) * max(times, 0))
        elif operator == "%" and isinstance(left, str):
            self._check_format(left, "%", (right,))
        return self._made(super().call_binop(context, operator, left, right))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """As in Jinja's sandbox, without the methods that grow without measure."""
        return attr not in _FORBIDDEN_METHODS and super().is_safe_attribute(obj, attr, value)

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        """Stops at once where Jinja's sandbox would go on with an undefined value."""
        self._stop(f"it reaches for {attribute!r} of {type(obj).__name__}")

    # Measuring.

    def _stop(self, why: str) -> NoReturn:
        raise SecurityError(f"stopped: {why}")

    def _charge(self, work: int) -> None:
        self._work_left -= work + STEP_WORK
        if self._work_left < 0 or time.thread_time() > self._deadline:
            self._stop("it takes too many steps")

    def _check_chars(self, n_chars: int) -> None:
        if n_chars > self._max_chars:
            self._stop("it makes too long a text")

    def _bounded_size(self, value: Any) -> int:
        """Characters that writing the value takes, about; stops at the limit."""
        size = size_of(value, self._max_chars)
        self._check_chars(size)
        return size

    def _made(self, value: Any) -> Any:
        n_chars = len(value) if isinstance(value, str | bytes | list | tuple | dict) else 0
        self._check_chars(n_chars)
        self._charge(n_chars)
        return value

    def _check_ints(self, args: Iterable[Any], kwargs: Mapping[str, Any]) -> None:
        for value in (*args, *kwargs.values()):
            if isinstance(value, int) and abs(value) > MAX_INT:
                self._stop(f"the argument {value:.3g} is beyond {MAX_INT}")

    def _check_method(self, method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        method = getattr(method, "__wrapped__", method)  # as the sandbox hands out str.format
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, str):
            self._check_text_making(name, owner, args, kwargs)

    def _check_text_making(
        self, name: str, text: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """str methods, and the filters of the same names, whose result can outgrow its parts."""
        if name == "replace" and len(args) >= 2 and isinstance(args[0], str):
            n_new = self._bounded_size(args[1])
            self._check_chars(len(text) + text.count(args[0]) * n_new)
        elif name == "join" and args and isinstance(args[0], list | tuple | dict | str):
            self._check_chars(self._bounded_size(args[0]) + len(text) * len(args[0]))
        elif name == "format":
            self._check_format(text, "{%", (args, kwargs))

    def _check_format(self, text: str, marks: str, values: tuple[Any, ...]) -> None:
        """Each mark may write all the values; a width may be written out or be a value."""
        if _LONG_NUMBER.search(text):
            self._stop("a width in a format string is too large")
        size = self._bounded_size(values)
        self._check_ints(_flat(values), {})
        n_fields = sum(text.count(mark) for mark in marks)
        widths = [int(digits) for digits in _NUMBER.findall(text)]
        if "*" in text or "{" in text[text.find(":") :]:  # a value may be the width
            widths += map(_width, _flat(values))
        self._check_chars(len(text) + n_fields * (size + max(widths, default=0)))

    def _guarded_filter(self, name: str, func: Callable[..., Any]) -> Callable[..., Any]:
        n_hidden = 1 if hasattr(func, "jinja_pass_arg") else 0  # the context comes first

        @wraps(func)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            shown = args[n_hidden:]
            value, rest = (shown[0] if shown else None), shown[1:]
            self._check_ints(rest, kwargs)
            if name not in _LISTING_FILTERS:
                size = self._bounded_size(value)
                widths = [_width(v) for v in (*rest, *kwargs.values())]
                if name in ("join", "indent", "tojson"):
                    self._check_chars(size * (1 + max(widths, default=0)))
                elif isinstance(value, str):
                    self._check_text_making(name, value, rest, kwargs)
            self._charge(len(value) if isinstance(value, str | list | tuple | dict) else 0)
            return self._made(func(*args, **kwargs))

        return guarded

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _instrumented(super()._parse(source, name, filename))


class GenerationBlocks(Extension):
    """`{% generation %}...{% endgeneration %}` marks the answer for training; here it is plain."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own attribute)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The body as it stands."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def size_of(value: Any, limit: int) -> int:
    """Characters that writing the value takes, about, counted no further than the limit."""
    size, stack = 0, [value]
    while stack and size <= limit:
        item = stack.pop()
        if isinstance(item, str | bytes):
            size += len(item)
        elif isinstance(item, Mapping):
            size += 8 * len(item)
            stack += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple | set | frozenset):
            size += 8 * len(item)
            stack += item
        else:
            size += 8
    return size


def _flat(values: Iterable[Any]) -> Iterable[Any]:
    for value in values:
        if isinstance(value, Mapping):
            yield from value.values()
        elif isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value


def _width(value: Any) -> int:
    return max(value, 0) if isinstance(value, int) else len(value) if isinstance(value, str) else 0


def _instrumented(template: nodes.Template) -> nodes.Template:
    """The same template with the calls of BoundedEnvironment in it."""
    for loop in list(template.find_all(nodes.For)):
        texts = (*loop.find_all(nodes.TemplateData), *loop.find_all(nodes.Const))
        n_chars = sum(len(getattr(n, "data", None) or str(getattr(n, "value", ""))) for n in texts)
        turn = _call("turn", [nodes.Const(n_chars)])
        loop.body = [nodes.ExprStmt(turn), *loop.body]
        if loop.test is not None:
            loop.test = nodes.And(nodes.Not(_call("turn", [nodes.Const(0)])), loop.test)
    _replace(template)
    assert template.environment is not None  # the parser has set it
    template.set_environment(template.environment)  # for the nodes that are new
    return template


def _replace(parent: nodes.Node) -> None:
    for field, value in parent.iter_fields():
        if isinstance(value, list):
            value[:] = [_replaced(v) if isinstance(v, nodes.Node) else v for v in value]
        elif isinstance(value, nodes.Node):
            setattr(parent, field, _replaced(value))


def _replaced(node: nodes.Node) -> nodes.Node:
    _replace(node)
    if isinstance(node, nodes.Concat):
        return _call("joined", node.nodes).set_lineno(node.lineno)
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        cut = node.arg
        parts = [part or nodes.Const(None) for part in (cut.start, cut.stop, cut.step)]
        return _call("cut", [node.node, *parts]).set_lineno(node.lineno)
    return node


def _call(method: str, args: list[nodes.Expr]) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(method), args, [], None, None)
