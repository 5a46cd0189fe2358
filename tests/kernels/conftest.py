"""`launcher`: where the kernel tests run. The emulator, or with `-m gpu` the card.

What it offers stands at the head of m40llm/fuzz/launchers.py. `disassembler`: see test_sm52.py.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from m40llm.fuzz.launchers import EmulatedLauncher, card_launcher


@pytest.fixture(scope="session", params=["emulator", pytest.param("card", marks=pytest.mark.gpu)])
def launcher(request: pytest.FixtureRequest) -> Any:
    return EmulatedLauncher() if request.param == "emulator" else card_launcher()


@pytest.fixture(scope="session")
def disassembler(offline_reason: Callable[[], str]) -> Path | None:
    """nvdisasm: found, else fetched, once for all workers; None where it cannot be."""
    from m40llm.sm52.disassembler import fetch_disassembler, find_disassembler

    found = find_disassembler()
    return found if found or offline_reason() else fetch_disassembler()
