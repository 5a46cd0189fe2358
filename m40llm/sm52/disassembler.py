"""nvdisasm, which turns code for a card into text: found on this machine, or fetched if asked.

Looked for in this order: M40LLM_NVDISASM, the cache folder, PATH, bin/ of CUDA_HOME and CUDA_PATH.
The cache comes before a toolkit, which may be too new to know Maxwell (CUDA 13).
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from m40llm.errors import DeviceError, RequestError
from m40llm.hub.tools import NVDISASM, pull_tool, pulled_tool
from m40llm.progress import Progress, silent

VARIABLE: Final = "M40LLM_NVDISASM"


def find_disassembler() -> Path | None:
    """The first there is; RequestError where the variable names none."""
    if named := os.environ.get(VARIABLE):
        if not os.access(named, os.X_OK):
            raise RequestError(f"{VARIABLE}: expected the path of nvdisasm, got {named!r}")
        return Path(named)
    return next(_found(), None)


def _found() -> Iterator[Path]:
    if pulled := pulled_tool(NVDISASM):
        yield pulled
    if on_path := shutil.which("nvdisasm"):
        yield Path(on_path)
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        path = Path(os.environ.get(variable, ""), "bin", "nvdisasm")
        if os.environ.get(variable) and os.access(path, os.X_OK):
            yield path


def fetch_disassembler(progress: Progress = silent) -> Path:
    """From the package index: see hub/tools.py. PullError where that fails."""
    return pull_tool(NVDISASM, progress)


def what_is_fetched() -> str:
    """In words, with its size."""
    (part,) = NVDISASM.parts
    return (
        f"{NVDISASM.about}, out of the wheel {part.requirement}: {part.wheel_bytes / 1e6:.0f} MB "
        f"to fetch, {NVDISASM.n_bytes / 1e6:.0f} MB to keep"
    )


def disassemble(cubin: bytes, tool: Path) -> str:
    """The listing of a cubin. DeviceError with the tool's own words where it does not take it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        command = [str(tool), "-c", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DeviceError(
            f"{tool}: {done.stderr.strip() or f'exit code {done.returncode}'}; CUDA 13's does not "
            f"know Maxwell: {VARIABLE} may name an older one, or --fetch get one"
        )
    return done.stdout
