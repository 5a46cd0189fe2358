"""Devices: `open_device` turns what the user typed after --device into one device's ops."""

import re

from m40llm.device.environment import ENABLE_CUBLAS, FORCE_M40, forced_capability, switch
from m40llm.device.numba_cuda import numba_cuda_problem
from m40llm.device.ops import Ops
from m40llm.device.packages import CUDA_PACKAGE
from m40llm.errors import DeviceError, RequestError

DEVICE_FORMS = "auto, cpu, cuda, cuda:N or emulator"


def open_device(
    name: str, *, cublas: bool | None = None, require_sm52: bool = False
) -> tuple[Ops, str]:
    """(ops, why this device). `auto` takes a usable GPU, else the CPU.

    `cuda` and `cuda:-1` take an sm_52 card first, then the most capable; `cuda:N` that card.
    cublas        matrix products by cuBLAS; None does as M40LLM_ENABLE_CUBLAS=0|1 says
    require_sm52  refuse any other card, as M40LLM_FORCE_M40=1 does
    The variables say nothing of a device that is no card, where the arguments are refused.
    Where one of the two is asked for, `auto` does not fall back to the CPU.

    Raises RequestError for a name of no known form and for what needs a card on a device that is
    none, DeviceError for a device that cannot be used.
    """
    by_cublas = switch(ENABLE_CUBLAS) if cublas is None else cublas
    switch(FORCE_M40)  # is read where a card is chosen; a value that is none is refused anywhere
    forced_capability()  # likewise, and before Numba sees it
    needs_card = bool(cublas) or require_sm52
    if name == "auto":
        return _open_auto(bool(by_cublas), require_sm52, needs_card)
    if name in ("cpu", "emulator"):
        if needs_card:
            what = "cublas" if cublas else "require_sm52"
            raise RequestError(f"{what}: expected a CUDA card (--device cuda), got device {name!r}")
        if name == "cpu":
            return _open_cpu(), "asked for"
        return _open_emulator(), "asked for"
    match = re.fullmatch(r"cuda(?::(-1|\d+))?", name)
    if not match:
        raise RequestError(f"device: expected {DEVICE_FORMS}, got {name!r}")
    number = match.group(1)
    index = None if number in (None, "-1") else int(number)
    return _open_cuda(index, bool(by_cublas), require_sm52)


def _open_auto(cublas: bool, require_sm52: bool, needs_card: bool) -> tuple[Ops, str]:
    try:
        if not needs_card:
            from m40llm.device.cuda.choose import find_cards

            cards, reason = find_cards()
            if not cards:
                return _open_cpu(), reason
        return _open_cuda(None, cublas, require_sm52)
    except DeviceError as error:
        if needs_card:
            raise
        return _open_cpu(), str(error)


def _open_cpu() -> Ops:
    from m40llm.device.cpu.ops import CpuOps

    return CpuOps()


def _open_cuda(index: int | None, cublas: bool, require_sm52: bool) -> tuple[Ops, str]:
    from m40llm.device.cuda.choose import choose_card

    chosen = choose_card(index, require_sm52=require_sm52)
    from m40llm.device.cuda.card import CudaCard
    from m40llm.device.gpu.ops import GpuOps

    reason = "{}, sm_{}{}".format(chosen.name, *chosen.capability)
    card = CudaCard(chosen.index)
    if not cublas:
        return GpuOps(card), reason
    from m40llm.device.cuda.cublas import open_cublas

    return GpuOps(card, open_cublas(card)), f"{reason}, matrix products by cuBLAS"


def _open_emulator() -> Ops:
    if problem := numba_cuda_problem():
        raise DeviceError(f"device 'emulator': {problem}")
    try:
        from m40llm.device.emulator.card import EmulatedCard
        from m40llm.device.gpu.ops import GpuOps
    except ImportError as error:
        raise DeviceError(f"device 'emulator': {error}; it needs {CUDA_PACKAGE}") from None
    return GpuOps(EmulatedCard(checks=False))


__all__ = ["DEVICE_FORMS", "Ops", "open_device"]
