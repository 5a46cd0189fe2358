"""Which card: an M40 first, as this project is for it, then the most capable."""

import importlib.util
from dataclasses import dataclass

from m40llm.device.cuda import requirements
from m40llm.device.cuda.requirements import (
    Installed,
    driver_release,
    refusal,
    why_no_card,
)
from m40llm.device.environment import FORCE_M40, forced_capability, switch
from m40llm.device.numba_cuda import numba_cuda_problem
from m40llm.errors import DeviceError

SM_52 = (5, 2)
NO_PACKAGE = "no GPU support installed"
HINT = "--device cpu works anywhere, m40llm doctor says what is missing"


@dataclass(frozen=True)
class FoundCard:
    """One card of this machine."""

    index: int
    name: str
    capability: tuple[int, int]


def find_cards() -> tuple[list[FoundCard], str]:
    """(the cards, why there is none). Starts the driver, but no context on any card."""
    if importlib.util.find_spec("numba_cuda") is None:  # Numba's own CUDA target is not enough
        return [], NO_PACKAGE
    if problem := numba_cuda_problem():
        return [], problem
    from numba import cuda

    try:
        if not cuda.is_available():
            return [], why_no_card(driver_release())
        cards = [
            FoundCard(card.id, _text(card.name), tuple(card.compute_capability))
            for card in cuda.gpus
        ]
    except Exception as error:  # whatever an odd driver raises, the CPU still works
        return [], f"the driver failed: {error}"
    return cards, "" if cards else why_no_card(driver_release())


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else name


def find_installed() -> Installed:
    """Driver and toolkit of this machine, asked once there is a card."""
    from numba.cuda.cudadrv.driver import driver

    forced = forced_capability()
    try:
        major, minor = map(int, driver.get_version())
    except Exception:  # the card shows soon enough what is wrong with its driver
        return requirements.find_installed(driver_release(), None, forced)
    return requirements.find_installed(driver_release(), (major, minor), forced)


def choose_card(index: int | None, *, require_sm52: bool = False) -> FoundCard:
    """Card number `index`; None takes an sm_52 card, else the most capable that can be used.

    require_sm52, and M40LLM_FORCE_M40=1, refuse any other than sm_52. DeviceError says of each
    card why it is refused.
    """
    device = "cuda" if index is None else f"cuda:{index}"
    is_forced = switch(FORCE_M40)
    cards, reason = find_cards()
    if not cards:
        raise DeviceError(f"device {device!r}: {reason or 'no card'}; {HINT}")
    wanted = [card for card in cards if index in (None, card.index)]
    if not wanted:
        known = ", ".join(f"{card.index} ({card.name})" for card in cards)
        raise DeviceError(f"device {device!r}: no such card; there is {known}")
    rule = "--require-sm52" if require_sm52 else f"{FORCE_M40}=1" if is_forced else None
    installed = find_installed()
    refused = {card: _refusal(card, rule, installed) for card in wanted}
    usable = [card for card, why in refused.items() if why is None]
    if not usable:
        told = "; ".join(f"{card.name}: {why}" for card, why in refused.items())
        raise DeviceError(f"device {device!r}: {told}; {HINT}")
    return max(usable, key=lambda card: (card.capability == SM_52, card.capability))


def _refusal(card: FoundCard, rule: str | None, installed: Installed) -> str | None:
    if rule and card.capability != SM_52:
        return "{} wants an sm_52 card, this one is sm_{}{}".format(rule, *card.capability)
    return refusal(card.capability, installed)
