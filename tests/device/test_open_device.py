"""Which device a name opens, and what is said where it cannot be used."""

import pytest

from m40llm.device import open_device
from m40llm.device.cuda import choose
from m40llm.device.cuda.choose import FoundCard, choose_card
from m40llm.errors import DeviceError, RequestError

H100 = FoundCard(0, "NVIDIA H100", (9, 0))
M40 = FoundCard(1, "Tesla M40", (5, 2))
P40 = FoundCard(2, "Tesla P40", (6, 1))


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> list[FoundCard]:
    found: list[FoundCard] = []
    monkeypatch.setattr(choose, "find_cards", lambda: (found, "" if found else "no driver"))
    return found


def test_an_m40_comes_first_then_the_most_capable(cards: list[FoundCard]) -> None:
    cards += [P40, H100]
    assert choose_card(None) == H100
    cards += [M40]
    assert choose_card(None) == M40
    assert choose_card(2) == P40


def test_a_number_that_is_not_there_names_those_that_are(cards: list[FoundCard]) -> None:
    cards += [H100]
    with pytest.raises(DeviceError, match=r"cuda:7.*0 \(NVIDIA H100\)"):
        choose_card(7)


def test_without_a_card_the_reason_and_the_way_out(cards: list[FoundCard]) -> None:
    with pytest.raises(DeviceError, match="no driver; --device cpu works"):
        choose_card(None)
    with pytest.raises(DeviceError, match="no driver"):
        open_device("cuda")


def test_auto_falls_back_to_the_cpu_and_says_why(cards: list[FoundCard]) -> None:
    ops, reason = open_device("auto")
    assert (ops.name, reason) == ("cpu", "no driver")


def test_a_plain_install_never_touches_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba brings a CUDA target of its own; without numba-cuda it is not even imported."""
    monkeypatch.setattr(choose.importlib.util, "find_spec", lambda name: None)
    assert choose.find_cards() == ([], choose.NO_PACKAGE)


def test_force_m40(cards: list[FoundCard], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M40LLM_FORCE_M40", "1")
    cards += [H100]
    with pytest.raises(DeviceError, match="wants an sm_52 card; there is NVIDIA H100"):
        choose_card(None)
    cards += [M40]
    assert choose_card(None) == M40


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:x", "cuda:-2", "CUDA", "cpu:0"])
def test_names_of_no_device(name: str) -> None:
    with pytest.raises(RequestError, match="device: expected auto, cpu, cuda, cuda:N or emulator"):
        open_device(name)
