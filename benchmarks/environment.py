"""What a number was measured on: card, driver, versions, commit, date. Part of every row."""

import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import m40llm
from m40llm.bench.machine import version_of


@dataclass(frozen=True)
class Environment:
    """One machine and one state of the code.

    capability    of the card, "9.0"
    compiled_for  what the kernels are code for: NUMBA_FORCE_CUDA_CC, else the capability
    """

    device: str
    capability: str | None
    compiled_for: str | None
    driver: str | None
    n_sms: int
    python: str
    numpy: str | None
    numba: str | None
    numba_cuda: str | None
    torch: str | None
    m40llm: str
    commit: str
    date: str


def environment(card: Any) -> Environment:
    """Of an open card, or of the emulator."""
    is_emulator = card.name == "emulator"
    name, capability = ("emulator", None) if is_emulator else _identity(card)
    return Environment(
        device=name,
        capability=capability,
        compiled_for="5.2" if is_emulator else os.environ.get("NUMBA_FORCE_CUDA_CC", capability),
        driver=None if is_emulator else _driver_version(card),
        n_sms=card.n_sms,
        python=platform.python_version(),
        numpy=version_of("numpy"),
        numba=version_of("numba"),
        numba_cuda=version_of("numba-cuda"),
        torch=version_of("torch"),
        m40llm=m40llm.__version__,
        commit=commit(),
        date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ"),
    )


def commit() -> str:
    """M40LLM_COMMIT, else git's, with a + where files differ from it."""
    if given := os.environ.get("M40LLM_COMMIT"):
        return given
    folder = str(Path(__file__).parent)
    ask = ["git", "-C", folder, "describe", "--always", "--dirty=+", "--exclude=*"]
    return _answer(ask) or "unknown"


def _identity(card: Any) -> tuple[str, str | None]:
    """(name, capability) of a real card."""
    from m40llm.device.cuda.choose import find_cards

    index = _index(card)
    for found in find_cards()[0]:
        if found.index == index:
            return found.name, "{}.{}".format(*found.capability)
    return card.name, None


def _driver_version(card: Any) -> str | None:
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return _answer([*ask, f"--id={_index(card)}"]) or _answer(ask).partition("\n")[0] or None


def _index(card: Any) -> int:
    return int(card.name.rpartition(":")[2] or 0)


def _answer(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
