"""Which card: an M40 first, as this project is for it, then the most capable."""

import importlib.util
import os
from dataclasses import dataclass

from m40llm.errors import DeviceError

SM_52 = (5, 2)
NO_PACKAGE = "numba-cuda is not installed (m40llm doctor says how)"


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
    from numba import cuda

    try:
        if not cuda.is_available():
            return [], "no NVIDIA driver or no card was found"
        cards = [
            FoundCard(card.id, _text(card.name), tuple(card.compute_capability))
            for card in cuda.gpus
        ]
    except Exception as error:  # whatever an odd driver raises, the CPU still works
        return [], f"the driver failed: {error}"
    return cards, "" if cards else "the driver lists no card"


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else name


def choose_card(index: int | None) -> FoundCard:
    """Card number `index`; None takes an sm_52 card, else the most capable.

    M40LLM_FORCE_M40=1 refuses any other than sm_52. DeviceError says why there is none.
    """
    cards, reason = find_cards()
    if os.environ.get("M40LLM_FORCE_M40") == "1":
        others = [card for card in cards if card.capability != SM_52]
        cards = [card for card in cards if card.capability == SM_52]
        if not cards and others:
            names = ", ".join(card.name for card in others)
            reason = f"M40LLM_FORCE_M40=1 wants an sm_52 card; there is {names}"
    if not cards:
        hint = "--device cpu works anywhere, m40llm doctor says what is missing"
        raise DeviceError(f"device 'cuda': {reason or 'no card'}; {hint}")
    if index is None:
        return max(cards, key=lambda card: (card.capability == SM_52, card.capability))
    for card in cards:
        if card.index == index:
            return card
    known = ", ".join(f"{card.index} ({card.name})" for card in cards)
    raise DeviceError(f"device 'cuda:{index}': no such card; there is {known}")
