"""Compiler, assembler and Numba's switches on this machine: what is said where one is missing."""

import re
import sys

import pytest

from m40llm.device import open_device
from m40llm.device.cuda import toolchain
from m40llm.device.environment import FORCE_CC, forced_capability
from m40llm.errors import DeviceError, RequestError


# ------------------------------------------------------------- compiler and assembler
def test_the_assembler_must_not_be_older_than_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch pins an nvJitLink of its own release, for one."""
    written = toolchain.compiler_version(12)
    assert written is not None
    assert toolchain.nvjitlink_assembles(12)
    monkeypatch.setattr(toolchain, "nvjitlink_version", lambda: (12, written[1] - 1))
    assert not toolchain.nvjitlink_assembles(12)
    monkeypatch.setattr(toolchain, "nvjitlink_version", lambda: None)
    assert not toolchain.nvjitlink_assembles(12)


def test_the_compiler_itself_says_for_what_it_compiles() -> None:
    assert toolchain.nvvm_compiles_for((5, 2))
    assert not toolchain.nvvm_compiles_for((3, 5))


def test_without_nvjitlink_there_is_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    assert toolchain.nvjitlink_version() is not None
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvjitlink", None)
    monkeypatch.delattr("cuda.bindings.nvjitlink", raising=False)
    assert toolchain.nvjitlink_version() is None


def test_an_architecture_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, wanted in [("", None), ("5.2", (5, 2)), ("12.0", (12, 0)), ("9.0a", (9, 0))]:
        monkeypatch.setenv(FORCE_CC, value)
        assert forced_capability() == wanted
    monkeypatch.setenv(FORCE_CC, "sm_52")
    for device in ("cpu", "auto", "emulator"):
        with pytest.raises(RequestError, match=f"{FORCE_CC}: .* such as 5.2, got 'sm_52'"):
            open_device(device)


# ------------------------------------------------------------- numba-cuda itself
def test_numba_cuda_without_its_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a plain `pip install numba-cuda` gives where there is no toolkit: its import fails."""

    class NoLibrary:
        @staticmethod
        def find_spec(name: str, *_: object) -> None:
            if name == "numba.cuda":
                raise RuntimeError('Failure finding "libcudart.so.12": No such file\nnor elsewhere')

    monkeypatch.delitem(sys.modules, "numba.cuda", raising=False)
    monkeypatch.delattr("numba.cuda", raising=False)
    monkeypatch.setattr(sys, "meta_path", [NoLibrary, *sys.meta_path])
    told = r"numba-cuda cannot be imported \(Failure .*libcudart.*\): pip install 'numba-cuda"
    for device in ("cuda", "emulator"):
        with pytest.raises(DeviceError, match=f"^device '{device}': {told}"):
            open_device(device)
    ops, reason = open_device("auto")
    assert ops.name == "cpu"
    assert re.match(told, reason)
    assert "\n" not in reason


@pytest.mark.parametrize("name", ["NUMBA_ENABLE_CUDASIM", "NUMBA_DISABLE_JIT"])
def test_switches_that_turn_numba_off(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(DeviceError, match=f"device 'emulator': {name} turns .* off: unset {name}"):
        open_device("emulator")
