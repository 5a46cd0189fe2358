"""Which device a name opens, and what is said where it cannot be used."""

from typing import Any

import pytest

from m40llm.device import open_device
from m40llm.device.cuda import choose
from m40llm.device.cuda.choose import FoundCard, choose_card
from m40llm.device.cuda.requirements import Installed, driver_wanted, why_no_card
from m40llm.device.environment import ENABLE_CUBLAS, FORCE_M40
from m40llm.errors import DeviceError, RequestError

H100 = FoundCard(0, "NVIDIA H100", (9, 0))
M40 = FoundCard(1, "Tesla M40", (5, 2))
P40 = FoundCard(2, "Tesla P40", (6, 1))
K80 = FoundCard(3, "Tesla K80", (3, 7))
GTX_750 = FoundCard(4, "GeForce GTX 750", (5, 0))
B200 = FoundCard(5, "NVIDIA B200", (10, 0))
R580 = Installed("580.65.06", (13, 0), 12)


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> list[FoundCard]:
    found: list[FoundCard] = []
    monkeypatch.setattr(choose, "find_cards", lambda: (found, "" if found else "no driver"))
    monkeypatch.setattr(choose, "find_installed", lambda: R580)
    for name in (FORCE_M40, ENABLE_CUBLAS):
        monkeypatch.delenv(name, raising=False)
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
    told = "NVIDIA H100: M40LLM_FORCE_M40=1 wants an sm_52 card, this one is sm_90"
    for index in (None, 0):
        with pytest.raises(DeviceError, match=told):
            choose_card(index)
    cards += [M40]
    assert choose_card(None) == M40


def test_require_sm52(cards: list[FoundCard]) -> None:
    cards += [H100, P40]
    with pytest.raises(
        DeviceError, match=r"H100: --require-sm52 wants .*sm_90; Tesla P40: .*sm_61"
    ):
        choose_card(None, require_sm52=True)
    for device in ("cuda", "auto"):
        with pytest.raises(DeviceError, match="--require-sm52 wants an sm_52 card"):
            open_device(device, require_sm52=True)
    cards += [M40]
    assert choose_card(None, require_sm52=True) == M40


@pytest.mark.parametrize(
    ("card", "installed", "told"),
    [
        (K80, R580, r"Tesla K80: its compute capability is 3\.7, 5\.2 is the lowest"),
        (GTX_750, R580, r"GeForce GTX 750: its compute capability is 5\.0"),
        (
            M40,
            Installed("470.256.02", (11, 4), 12),
            r"Tesla M40: driver 470\.256\.02 \(CUDA 11\.4\) is too old: wanted is 525\.60\.13 or "
            r"newer, up to the 580 branch",
        ),
        (
            H100,
            Installed(None, (12, 4), 13),
            r"driver of unknown release \(CUDA 12\.4\) is too old: wanted is 580\.65\.06 or newer",
        ),
        (B200, Installed("550.54.14", (12, 4), 12), r"wanted is 570\.26 or newer"),
        (
            M40,
            Installed("580.65.06", (13, 0), 13),
            r"sm_52 needs the compiler of CUDA 12, and CUDA 13 is installed, which begins at "
            r"sm_75: pip install 'numba-cuda\[cu12\]",
        ),
        (
            M40,
            Installed("535.183.01", (12, 2), 12, compiler=(12, 9), assembles=False),
            r"driver 535\.183\.01 \(CUDA 12\.2\) cannot assemble the code of CUDA 12\.9, nor is "
            r"there an nvJitLink that can: pip install -U nvidia-nvjitlink-cu12;",
        ),
        (
            H100,
            Installed("580.65.06", (13, 0), 13, compiler=(13, 1), assembles=False),
            r"\(CUDA 13\.0\) cannot .* of CUDA 13\.1, .*: pip install -U nvidia-nvjitlink;",
        ),
        (
            H100,
            Installed("535.183.01", (12, 2), 12, compiler=(12, 9), forced=(5, 2)),
            r"cannot assemble the code of CUDA 12\.9, which NUMBA_FORCE_CUDA_CC leaves to it: "
            r"unset NUMBA_FORCE_CUDA_CC, or install a newer driver",
        ),
        (
            H100,
            Installed("580.65.06", (13, 0), 13, compiler=(13, 0), forced=(5, 2)),
            r"code for sm_52 needs the compiler of CUDA 12, and CUDA 13 is installed",
        ),
        (
            M40,
            Installed("580.65.06", (13, 0), 12, forced=(9, 0)),
            r"NUMBA_FORCE_CUDA_CC asks for code for sm_90, which an older card cannot run",
        ),
    ],
)
def test_why_a_card_is_refused(
    cards: list[FoundCard],
    monkeypatch: pytest.MonkeyPatch,
    card: FoundCard,
    installed: Installed,
    told: str,
) -> None:
    cards += [card]
    monkeypatch.setattr(choose, "find_installed", lambda: installed)
    for index in (None, card.index):
        with pytest.raises(DeviceError, match=told):
            choose_card(index)
    ops, reason = open_device("auto")
    assert ops.name == "cpu"
    assert card.name in reason


@pytest.mark.parametrize(
    ("card", "installed"),
    [
        (M40, Installed("525.60.13", (12, 0), 12)),
        (M40, Installed("535.0", (12, 2), None)),
        (M40, Installed(None, None, None)),
        (H100, Installed("580.65.06", (13, 0), 13)),
        (B200, Installed("570.26", (12, 8), 12)),
        (M40, Installed("535.183.01", (12, 2), 12, compiler=(12, 9), assembles=True)),
        (M40, Installed("580.65.06", (13, 0), 12, compiler=(12, 9), assembles=False)),
        (M40, Installed("580.65.06", (13, 0), 13, old_compiler=True)),
        (H100, Installed("580.65.06", (13, 0), 13, forced=(5, 2), old_compiler=True)),
        (M40, Installed("535.183.01", (12, 2), 12, compiler=(12, 9), forced=(5, 2))),
        (H100, Installed("580.65.06", (13, 0), 12, compiler=(12, 9), forced=(5, 2))),
    ],
)
def test_what_will_do(
    cards: list[FoundCard],
    monkeypatch: pytest.MonkeyPatch,
    card: FoundCard,
    installed: Installed,
) -> None:
    cards += [K80, card]
    monkeypatch.setattr(choose, "find_installed", lambda: installed)
    assert choose_card(None) == card


def test_the_driver_that_a_card_wants() -> None:
    assert driver_wanted((5, 2), 12) == "525.60.13 or newer, up to the 580 branch"
    assert driver_wanted((7, 0), 12) == "525.60.13 or newer, up to the 580 branch"
    assert driver_wanted((9, 0), 12) == "525.60.13 or newer"
    assert driver_wanted((9, 0), 13) == "580.65.06 or newer"
    assert driver_wanted((10, 0), None) == "570.26 or newer"
    assert driver_wanted((3, 7), 12).startswith("none")


def test_a_driver_without_cards() -> None:
    assert why_no_card(None) == "no NVIDIA driver or no card was found"
    assert why_no_card("580.65.06") == "driver 580.65.06 shows no card; nvidia-smi says more"
    assert "drives no Maxwell, Pascal or Volta card any more: R580" in why_no_card("595.10")


@pytest.mark.parametrize("name", ["cpu", "emulator"])
def test_cublas_and_sm52_need_a_card(cards: list[FoundCard], name: str) -> None:
    with pytest.raises(RequestError, match=f"cublas: expected a CUDA card .*, got device '{name}'"):
        open_device(name, cublas=True)
    with pytest.raises(RequestError, match=f"require_sm52: expected a CUDA card .*'{name}'"):
        open_device(name, require_sm52=True)
    assert open_device("cpu", cublas=False)[0].name == "cpu"


def test_auto_does_not_forget_what_was_asked_for(cards: list[FoundCard]) -> None:
    for wanted in ({"cublas": True}, {"require_sm52": True}):
        with pytest.raises(DeviceError, match="no driver"):
            open_device("auto", **wanted)


def test_the_switch_of_cublas(cards: list[FoundCard], monkeypatch: pytest.MonkeyPatch) -> None:
    """The flag wins over the variable, which speaks of cards alone."""
    opened: list[bool] = []

    def open_cuda(index: int | None, cublas: bool, require_sm52: bool) -> tuple[Any, str]:
        opened.append(cublas)
        return None, "opened"

    monkeypatch.setattr("m40llm.device._open_cuda", open_cuda)
    for value, flag, wanted in [
        ("1", None, True),
        ("0", None, False),
        ("", None, False),
        ("1", False, False),
        ("0", True, True),
        ("", True, True),
    ]:
        monkeypatch.setenv(ENABLE_CUBLAS, value)
        open_device("cuda", cublas=flag)
        assert opened.pop() == wanted
    monkeypatch.setenv(ENABLE_CUBLAS, "1")
    assert open_device("cpu")[0].name == "cpu"


@pytest.mark.parametrize("name", [ENABLE_CUBLAS, FORCE_M40])
def test_switches_are_0_or_1(
    cards: list[FoundCard], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    cards += [M40]
    monkeypatch.setenv(name, "yes")
    with pytest.raises(RequestError, match=f"{name}: expected 0 or 1, got 'yes'"):
        open_device("cuda")


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:x", "cuda:-2", "CUDA", "cpu:0"])
def test_names_of_no_device(name: str) -> None:
    with pytest.raises(RequestError, match="device: expected auto, cpu, cuda, cuda:N or emulator"):
        open_device(name)
