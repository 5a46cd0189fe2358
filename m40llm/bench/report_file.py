"""The file that `m40llm bench report` writes and `m40llm sm52 --measured` reads.

A file comes from somebody else: all that is used of it is looked at first, and RequestError says
what is wrong with it. docs/cli.md has its keys.
"""

import json
import os
from pathlib import Path
from typing import Any, Final, NoReturn

from m40llm.bench.shapes import SHAPES, TYPES
from m40llm.errors import RequestError
from m40llm.whole_file import whole_file

FORMAT: Final = "m40llm card report"
VERSION: Final = 1
MOST: Final = 1e300
MAX_BYTES: Final = 64 * 2**20


class Optional:
    """A value that may be null."""

    def __init__(self, kind: Any) -> None:
        self.kind = kind


# float: a finite number above 0; int: a number from 0 on; [x]: a list of such; a dict: these keys.
_LAUNCH: Final = {
    "step": str,
    "n_context": int,
    "kernel": str,
    "operand": str,
    "count": int,
    "grid": [int],
    "n_threads": int,
    "shared_bytes": int,
    "n_bytes": int,
    "n_flops": int,
    "us": float,
}
_STEP: Final = {
    "step": str,
    "n_context": int,
    "n_tokens": int,
    "ms": float,
    "tokens_per_s": float,
}
_MODEL: Final = {
    "shape": str,
    "type": str,
    "max_seq_len": int,
    "max_tokens": int,
    "steps": [_STEP],
    "launches": [_LAUNCH],
    "prefill": Optional({"n_tokens": int, "ms": float, "tokens_per_s": float}),
    "decode": [{"form": str, "kv": int, "n_tokens": int, "ms": float, "tokens_per_s": float}],
}
_REASON: Final = {"what": str, "why": str}
_REPORT: Final = {
    "is_complete": bool,
    "date": str,
    "clock": str,
    "card": {
        "name": str,
        "capability": Optional(str),
        "code_for": str,
        "n_sms": int,
        "memory_bytes": Optional(int),
        "ecc": str,
        "driver": Optional(str),
    },
    "software": {"m40llm": str, "code": str},
    "ceilings": {"read_gb_per_s": Optional(float), "fp32_tflop_per_s": Optional(float)},
    "models": [_MODEL],
    "skipped": [_REASON],
    "failed": [_REASON],
}


def check_place(path: Path) -> None:
    """RequestError where no new file can be made of this name: asked before minutes are spent."""
    if path.exists():
        raise RequestError(f"out: {path} is there already; name another file")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise RequestError(f"out: cannot write {path}: there is no such folder, or it is read-only")


def write_report(document: dict[str, Any], path: Path) -> None:
    """Whole or not at all; OSError where it cannot be written."""
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    with whole_file(path) as file:
        file.write(text.encode())


def read_report(path: Path) -> dict[str, Any]:
    """The document, of which all that is read here is of the type and the size that it should be.

    RequestError for a file that is none, or of another version of the format.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RequestError(f"measured: {path} is too large for a report")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RequestError(f"measured: cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise RequestError(f"measured: {path} is no JSON: it is no UTF-8") from None
    try:
        document = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"measured: {path} is no JSON: {error}") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise RequestError(f"measured: {path} is no report of `m40llm bench report`")
    if document.get("version") != VERSION:
        got = document.get("version")
        raise RequestError(
            f"measured: {path} has version {got!r} of the format, this m40llm reads {VERSION}"
        )
    _check(document, _REPORT, "")
    for at, model in enumerate(document["models"]):
        _check_model(model, f"models[{at}]")
    return document


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _check(value: Any, wanted: Any, where: str) -> None:
    """RequestError that names the place where value is not as wanted."""
    if isinstance(wanted, Optional):
        if value is not None:
            _check(value, wanted.kind, where)
    elif isinstance(wanted, dict):
        if not isinstance(value, dict):
            _refuse(where, "an object", value)
        for key, kind in wanted.items():
            if key not in value:
                raise RequestError(f"measured: {where or 'the file'}: the key {key!r} is missing")
            _check(value[key], kind, f"{where}.{key}".lstrip("."))
    elif isinstance(wanted, list):
        if not isinstance(value, list):
            _refuse(where, "a list", value)
        for at, each in enumerate(value):
            _check(each, wanted[0], f"{where}[{at}]")
    else:
        _check_value(value, wanted, where)


def _check_value(value: Any, wanted: type, where: str) -> None:
    if wanted is str:
        if not isinstance(value, str) or not value.isprintable():  # it is printed at a terminal
            _refuse(where, "printable text", value)
    elif wanted is bool:
        if not isinstance(value, bool):
            _refuse(where, "true or false", value)
    elif isinstance(value, bool) or not isinstance(value, int | float):
        _refuse(where, "a number", value)
    elif wanted is int:
        if not isinstance(value, int) or not 0 <= value < 2**63:
            _refuse(where, "a whole number from 0", value)
    elif not 0 < value < MOST:  # nor is it infinite or NaN
        _refuse(where, "a number above 0", value)


def _check_model(model: dict[str, Any], where: str) -> None:
    """What an imagined card is asked to make must be of a known shape and size."""
    if model["shape"] not in SHAPES:
        _refuse(f"{where}.shape", f"one of {', '.join(SHAPES)}", model["shape"])
    if model["type"] not in TYPES:
        _refuse(f"{where}.type", f"one of {', '.join(TYPES)}", model["type"])
    longest = SHAPES[model["shape"]].context_length
    if not 1 <= model["max_tokens"] <= model["max_seq_len"] <= longest:
        sizes = model["max_tokens"], model["max_seq_len"]
        _refuse(f"{where}.max_seq_len", f"up to {longest}, and max_tokens within it", sizes)
    for at, step in enumerate(model["steps"]):
        place = f"{where}.steps[{at}]"
        if step["step"] not in ("decode", "prefill"):
            _refuse(f"{place}.step", "decode or prefill", step["step"])
        if not 1 <= step["n_tokens"] <= model["max_seq_len"] - step["n_context"]:
            _refuse(place, "tokens that the context holds", step["n_tokens"])


def _refuse(where: str, wanted: str, got: Any) -> NoReturn:
    shown = repr(got)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    raise RequestError(f"measured: {where}: expected {wanted}, got {shown}")
