"""A failure: the smallest case found, why it fails, and the test that shows it."""

import hashlib
import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m40llm.fuzz.definition import Target


@dataclass(frozen=True)
class Failure:
    """What fuzzing found.

    error    type and text of what the check raised
    case     arguments of the check, and the schedule
    test     a whole file for pytest that fails in the same way
    path     where it is kept, if it is
    is_sure  whether it failed again when run again; not so is a race, on a card
    """

    target: str
    source: str
    error: str
    case: Mapping[str, Any]
    test: str
    path: Path | None = None
    is_sure: bool = True

    @property
    def file_name(self) -> str:
        """Of the test: the same for the same target, kind of error and case."""
        kind = self.error.partition(":")[0]
        identity = repr((self.target, self.source, kind, dict(self.case)))
        digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
        return f"test_{self.target}_{digest}.py"


def failure_of(
    target: Target, error: BaseException, case: dict[str, Any], device: str, *, is_sure: bool
) -> Failure:
    """The report of a case that fails with this error."""
    message = f"{type(error).__name__}: {error}".strip()
    text = _test(target, message, case, device)
    return Failure(target.name, target.source, message, case, text, is_sure=is_sure)


def _test(target: Target, message: str, case: dict[str, Any], device: str) -> str:
    shown = textwrap.indent(_wrapped(message), "    ").replace("\\", "\\\\").replace('"""', "'''")
    given = dict(case) if device == "emulator" else {"device": device, **case}
    arguments = "".join(f"        {name}={literal(value)},\n" for name, value in given.items())
    return (
        f'"""Found by m40llm fuzz in {target.name}:\n\n{shown}\n"""\n\n'
        "from m40llm.fuzz import check_case, load_target\n\n\n"
        f"def test_{target.name}() -> None:\n"
        f"    check_case(\n        load_target({literal(target.source)}),\n{arguments}    )\n"
    )


def _wrapped(text: str) -> str:
    lines = (textwrap.wrap(line, 92) or [""] for line in text.splitlines()[:40])
    return "\n".join(part for wrapped in lines for part in wrapped)


def literal(value: Any) -> str:
    """A value of a case as Python that makes it."""
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if isinstance(value, tuple):
        inner = ", ".join(map(literal, value))
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return repr(value)
