"""What a card is and how it is doing, as far as the driver says: nothing that tells whose it is."""

import subprocess
from typing import Any, Final

from cuda.bindings import driver

from m40llm.device.cuda.card import NAME_BYTES, CudaCard
from m40llm.device.cuda.driver import DriverError, call, release_of, text_of
from m40llm.device.cuda.requirements import driver_release, toolkit_major
from m40llm.device.cuda.toolchain import compiler_version

_ATTRIBUTES: Final = {
    "l2_bytes": "L2_CACHE_SIZE",
    "clock_khz": "CLOCK_RATE",
    "memory_clock_khz": "MEMORY_CLOCK_RATE",
    "memory_bus_bits": "GLOBAL_MEMORY_BUS_WIDTH",
}
_QUERIES: Final = {
    "sm_mhz": "clocks.sm",
    "memory_mhz": "clocks.mem",
    "temperature_c": "temperature.gpu",
    "power_w": "power.draw",
    "power_limit_w": "power.limit",
}
_BUS_ID_BYTES: Final = 32


def card_facts(card: CudaCard) -> dict[str, Any]:
    """Name, sizes, clocks, ECC and driver; None or "unknown" for what it does not say."""
    ecc = _attribute(card, "ECC_ENABLED")
    compiler = compiler_version(toolkit_major())
    return {
        "name": text_of(call(driver.cuDeviceGetName, NAME_BYTES, card.device)),
        "capability": "{}.{}".format(*card.capability),
        "code_for": card.target,
        "n_sms": card.n_sms,
        "memory_bytes": int(call(driver.cuDeviceTotalMem, card.device)),
        "ecc": "unknown" if ecc is None else "on" if ecc else "off",
        **{key: _attribute(card, name) for key, name in _ATTRIBUTES.items()},
        "driver": driver_release(),
        "cuda": release_of(call(driver.cuDriverGetVersion)),
        "compiler": None if compiler is None else "{}.{}".format(*compiler),
    }


def card_state(card: CudaCard) -> dict[str, float | None] | None:
    """Clocks, temperature and power now, by nvidia-smi; None where there is none."""
    try:
        bus_id = call(driver.cuDeviceGetPCIBusId, _BUS_ID_BYTES, card.device)
        fields = ",".join(_QUERIES.values())
        done = subprocess.run(
            [
                *("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"),
                f"--id={text_of(bus_id)}",
            ],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
    except (OSError, subprocess.SubprocessError, DriverError):
        return None
    cells = [cell.strip() for cell in done.stdout.strip().split(",")]
    if len(cells) != len(_QUERIES):
        return None
    return dict(zip(_QUERIES, map(_number, cells), strict=True))


def _number(cell: str) -> float | None:
    """None for "[N/A]" and its like."""
    try:
        return float(cell)
    except ValueError:
        return None


def _attribute(card: CudaCard, name: str) -> int | None:
    try:
        return card.attribute(name)
    except (DriverError, AttributeError):  # AttributeError: bindings that do not know it
        return None
