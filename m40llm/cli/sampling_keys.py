"""Fields of `SamplingParams` by name: `/set KEY VALUE` in chat, `--set KEY=VALUE` elsewhere."""

import re
from collections.abc import Callable
from typing import Any, Final

from m40llm.errors import RequestError


def _names(value: str) -> tuple[str, ...]:
    return tuple(name for name in re.split(r"[,;\s]+", value) if name)


KEYS: Final[dict[str, Callable[[str], Any]]] = {
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "typical_p": float,
    "repetition_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "seed": int,
    "max_tokens": int,
    "top_n_sigma": float,
    "xtc_probability": float,
    "xtc_threshold": float,
    "dynatemp_range": float,
    "dynatemp_exponent": float,
    "dry_multiplier": float,
    "dry_base": float,
    "dry_allowed_length": int,
    "dry_last_n": int,
    "mirostat": int,
    "mirostat_tau": float,
    "mirostat_eta": float,
    "samplers": _names,
}
_SHORT: Final = {"temp": "temperature", "n": "max_tokens"}  # what the flags are called
_OPTIONAL: Final = ("seed", "max_tokens")  # "none" unsets these


def parsed(name: str, value: str, where: str = "/set") -> tuple[str, Any]:
    """(field, its value) of a name and a value as typed. RequestError begins with `where`."""
    key = name.lstrip("-").replace("-", "_")
    key = _SHORT.get(key, key)
    if key not in KEYS:
        raise RequestError(f"{where}: expected one of {', '.join(KEYS)}, got {name!r}")
    if value == "none" and key in _OPTIONAL:
        return key, None
    try:
        return key, KEYS[key](value)
    except ValueError:
        kind = "a whole number" if KEYS[key] is int else "a number"
        raise RequestError(f"{where} {key}: expected {kind}, got {value!r}") from None


def parsed_pairs(pairs: list[str] | None) -> dict[str, Any]:
    """The fields of `--set KEY=VALUE`, which may be given several times."""
    fields: dict[str, Any] = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not equals:
            raise RequestError(f"--set: expected KEY=VALUE, got {pair!r}")
        key, number = parsed(name.strip(), value.strip(), "--set")
        fields[key] = number
    return fields
