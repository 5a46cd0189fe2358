"""What a report was measured on: the card and the software, nothing that tells whose they are."""

import platform
from importlib import metadata
from typing import Any, Final

from m40llm import __version__
from m40llm.device.gpu.code_digest import code_digest

_PACKAGES: Final = ("numpy", "numba", "numba-cuda", "cuda-bindings", "llvmlite")
_UNKNOWN: Final = ("capability", "memory_bytes", "l2_bytes", "clock_khz", "memory_clock_khz")
_NO_DRIVER: Final = ("memory_bus_bits", "driver", "cuda", "compiler")


def facts_of(card: Any) -> dict[str, Any]:
    """The card's, in the same keys where it is the emulator."""
    if card.name != "emulator":
        from m40llm.device.cuda.facts import card_facts

        return card_facts(card)
    known = {"name": card.name, "n_sms": card.n_sms, "ecc": "unknown", "code_for": "emulator"}
    return known | dict.fromkeys((*_UNKNOWN, *_NO_DRIVER))


def state_of(card: Any) -> dict[str, float | None] | None:
    """Clocks, temperature and power now; None where nobody says."""
    if card.name == "emulator":
        return None
    from m40llm.device.cuda.facts import card_state

    return card_state(card)


def software() -> dict[str, str | None]:
    """Versions; code: a digest of the kernels and of what launches them."""
    found = {"m40llm": __version__, "code": code_digest(), "python": platform.python_version()}
    return found | {name.replace("-", "_"): version_of(name) for name in _PACKAGES}


def version_of(package: str) -> str | None:
    """None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
