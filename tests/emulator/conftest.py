"""Emulators in every order; a test that takes `emulator` runs once with each."""

import pytest

from m40llm.device.emulator import Emulator

VARIANTS = {
    "unchecked": {"checks": False},
    "checked": {},
    "descending": {"order": "descending"},
    "random": {"order": "random", "seed": 7},
}


@pytest.fixture(params=VARIANTS)
def emulator(request: pytest.FixtureRequest) -> Emulator:
    return Emulator(**VARIANTS[request.param], time_limit_s=60)
