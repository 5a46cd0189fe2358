"""`launcher`: where the kernel tests run. The emulator, or with `-m gpu` the card.

What it offers stands at the head of m40llm/fuzz/launchers.py.
"""

from typing import Any

import pytest

from m40llm.fuzz.launchers import EmulatedLauncher, card_launcher


@pytest.fixture(scope="session", params=["emulator", pytest.param("card", marks=pytest.mark.gpu)])
def launcher(request: pytest.FixtureRequest) -> Any:
    return EmulatedLauncher() if request.param == "emulator" else card_launcher()
