"""What is told of a card: as far as driver and nvidia-smi say, and nothing else."""

import subprocess
from types import SimpleNamespace
from typing import Any

import pytest

from m40llm.device.cuda import facts
from m40llm.device.cuda.driver import DriverError

CARD: Any = SimpleNamespace(device=0)
CELLS = "1113, 3004, 61, 181.20, 250.00"


def answer(monkeypatch: pytest.MonkeyPatch, given: Any) -> list[list[str]]:
    """nvidia-smi's; the commands that it was asked by."""
    asked: list[list[str]] = []

    def run(command: list[str], **how: Any) -> Any:
        asked.append(command)
        if isinstance(given, Exception):
            raise given
        return SimpleNamespace(stdout=given)

    monkeypatch.setattr(facts, "call", lambda *args: b"0000:03:00.0" + bytes(20))
    monkeypatch.setattr(facts.subprocess, "run", run)
    return asked


def test_state(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answer(monkeypatch, f"{CELLS}\n")
    assert facts.card_state(CARD) == {
        "sm_mhz": 1113,
        "memory_mhz": 3004,
        "temperature_c": 61,
        "power_w": 181.2,
        "power_limit_w": 250,
    }
    assert asked[0][-1] == "--id=0000:03:00.0"


def test_what_is_not_said_is_null(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, "1113, 3004, 61, [N/A], [Not Supported]\n")
    state = facts.card_state(CARD)
    assert state is not None
    assert (state["power_w"], state["power_limit_w"]) == (None, None)


@pytest.mark.parametrize(
    "given",
    [
        *("", "1113\n", f"{CELLS}\n{CELLS}\n"),
        FileNotFoundError("nvidia-smi"),
        subprocess.TimeoutExpired("nvidia-smi", 20),
        subprocess.CalledProcessError(6, "nvidia-smi"),
    ],
)
def test_without_an_answer(monkeypatch: pytest.MonkeyPatch, given: Any) -> None:
    answer(monkeypatch, given)
    assert facts.card_state(CARD) is None


@pytest.mark.parametrize(("ecc", "told"), [(1, "on"), (0, "off"), (None, "unknown")])
def test_facts(monkeypatch: pytest.MonkeyPatch, ecc: int | None, told: str) -> None:
    known = {"ECC_ENABLED": ecc, "L2_CACHE_SIZE": 3145728, "CLOCK_RATE": 1112000}

    def attribute(name: str) -> int:
        if known.get(name) is None:
            raise DriverError("cuDeviceGetAttribute", SimpleNamespace(name="CUDA_ERROR"))
        return known[name] or 0

    of_driver = {
        "cuDriverGetVersion": 12090,
        "cuDeviceGetName": b"Tesla M40 24GB" + bytes(9),
        "cuDeviceTotalMem": 24 << 30,
    }
    monkeypatch.setattr(facts, "call", lambda function, *args: of_driver[function.__name__])
    how = {"device": 0, "capability": (5, 2), "target": "sm_52", "n_sms": 24}
    card: Any = SimpleNamespace(**how, attribute=attribute)
    found = facts.card_facts(card)
    assert found["name"] == "Tesla M40 24GB"
    assert (found["capability"], found["code_for"], found["cuda"]) == ("5.2", "sm_52", "12.9")
    assert (found["ecc"], found["memory_bytes"], found["l2_bytes"]) == (told, 24 << 30, 3 << 20)
    assert (found["clock_khz"], found["memory_clock_khz"]) == (1112000, None)
