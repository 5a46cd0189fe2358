"""Which driver a card wants, and why a card is refused: NVIDIA's tables in a few numbers.

CUDA 12.x  drivers from R525 on, CUDA 13.x from R580 on: "CUDA Compatibility, Minor Version
           Compatibility", table 1. Below the toolkit's own release this holds for machine code
           alone: nvJitLink of the wheels assembles ours. (PTX of 12.9 wants R575.)
           Without nvJitLink, and where another card's code is asked for, the driver assembles.
Blackwell  from R570 on, the driver of CUDA 12.8, which was the first to know it
R580       the last for Maxwell, Pascal and Volta: NVIDIA's Unix feature deprecation schedule
CUDA 13    compiles for 7.5 and above: CUDA 13.0's release notes
"""

import importlib.metadata
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from m40llm.device.cuda.toolchain import (
    Version,
    compiler_version,
    nvjitlink_assembles,
    nvjitlink_command,
    nvvm_compiles_for,
)
from m40llm.device.environment import FORCE_CC
from m40llm.device.packages import CUDA_PACKAGE

OLDEST_CARD: Final = (5, 2)
FIRST_OF_CUDA13: Final = (7, 5)
BLACKWELL: Final = (10, 0)
LAST_FOR_MAXWELL: Final = 580  # the branch
KERNEL_MODULE = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Installed:
    """What lies between us and the cards; None is not known, and refuses nothing.

    release       of the driver, such as "580.65.06"
    cuda_version  the newest CUDA that the driver speaks
    toolkit       CUDA's major version that numba-cuda compiles with
    compiler      the release of CUDA whose PTX kernels become
    assembles     whether nvJitLink takes that PTX, so that the driver need not
    old_compiler  whether NVVM compiles for Maxwell though the toolkit's release does not
    forced        the architecture that code is made for, in place of the card's own
    """

    release: str | None
    cuda_version: Version | None
    toolkit: int | None
    compiler: Version | None = None
    assembles: bool = True
    forced: Version | None = None
    old_compiler: bool = False

    @property
    def driver(self) -> str:
        """The driver in words; its CUDA version must be known."""
        assert self.cuda_version
        return "driver {} (CUDA {}.{})".format(
            self.release or "of unknown release", *self.cuda_version
        )


def find_installed(
    release: str | None, cuda_version: Version | None, forced: Version | None = None
) -> Installed:
    """With this driver, the compiler and the assembler of this environment."""
    toolkit = toolkit_major()
    compiler, assembles = compiler_version(toolkit), nvjitlink_assembles(toolkit)
    old_compiler = (toolkit or 0) >= 13 and nvvm_compiles_for(OLDEST_CARD)
    return Installed(release, cuda_version, toolkit, compiler, assembles, forced, old_compiler)


def driver_release() -> str | None:
    """The driver's release; the driver API does not tell it."""
    try:
        text = KERNEL_MODULE.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    match = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", text)
    return match.group() if match else None


def toolkit_major() -> int | None:
    """Of the CUDA that numba-cuda compiles with: the one that cuda-bindings is made for."""
    try:
        return int(importlib.metadata.version("cuda-bindings").split(".")[0])
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None


def _oldest_driver(capability: Version, toolkit: int | None) -> tuple[str, Version]:
    """(release, CUDA version that it speaks) of the oldest driver that will do."""
    if toolkit is not None and toolkit >= 13 and capability >= FIRST_OF_CUDA13:
        return "580.65.06", (13, 0)
    return ("570.26", (12, 8)) if capability >= BLACKWELL else ("525.60.13", (12, 0))


def driver_wanted(capability: Version, toolkit: int | None) -> str:
    """The drivers that will do for a card, in words."""
    if capability < OLDEST_CARD:
        return "none: m40llm runs on compute capability 5.2 and above"
    oldest, _ = _oldest_driver(capability, toolkit)
    if capability < FIRST_OF_CUDA13:
        return f"{oldest} or newer, up to the {LAST_FOR_MAXWELL} branch"
    return f"{oldest} or newer"


def refusal(capability: Version, installed: Installed) -> str | None:
    """Why a card of this capability cannot be used; None where it can."""
    if capability < OLDEST_CARD:
        return "its compute capability is {}.{}, 5.2 is the lowest that m40llm runs on".format(
            *capability
        )
    target = installed.forced or capability
    if target > capability:
        return "{} asks for code for sm_{}{}, which an older card cannot run".format(
            FORCE_CC, *target
        )
    is_too_new = (installed.toolkit or 0) >= 13 and not installed.old_compiler
    if target < FIRST_OF_CUDA13 and is_too_new:
        return (
            "code for sm_{}{} needs the compiler of CUDA 12, and CUDA {} is installed, which "
            "begins at sm_75: {} (the extra `cuda12`)"
        ).format(*target, installed.toolkit, CUDA_PACKAGE)
    _, oldest_cuda = _oldest_driver(capability, installed.toolkit)
    if installed.cuda_version is not None and installed.cuda_version < oldest_cuda:
        wanted = driver_wanted(capability, installed.toolkit)
        return f"{installed.driver} is too old: wanted is {wanted}"
    return _no_assembler(target == capability, installed)


def _no_assembler(is_own: bool, installed: Installed) -> str | None:
    """Why nobody makes machine code of the compiler's PTX; is_own: it is for the card itself."""
    speaks, written = installed.cuda_version, installed.compiler
    if (is_own and installed.assembles) or not speaks or not written or speaks >= written:
        return None
    told = "{} cannot assemble the code of CUDA {}.{}".format(installed.driver, *written)
    if is_own:
        return f"{told}, nor is there an nvJitLink that can: {nvjitlink_command(installed.toolkit)}"
    return f"{told}, which {FORCE_CC} leaves to it: unset {FORCE_CC}, or install a newer driver"


def why_no_card(release: str | None) -> str:
    """Where the driver lists no card, or there is no driver."""
    if release is None:
        return "no NVIDIA driver or no card was found"
    too_new = int(release.split(".")[0]) > LAST_FOR_MAXWELL
    hint = (
        f"; it drives no Maxwell, Pascal or Volta card any more: R{LAST_FOR_MAXWELL} was the last"
    )
    return f"driver {release} shows no card{hint if too_new else ''}; nvidia-smi says more"
