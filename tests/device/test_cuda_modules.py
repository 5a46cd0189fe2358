"""Compiled kernels of a card: arrays as parameters, cubins without a driver, entries on disk."""

import ctypes
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda.pathfinder import DynamicLibNotFoundError
from numba import cuda, float32, int32

from m40llm.device.cuda import assemble, modules
from m40llm.device.cuda.array import DeviceArray
from m40llm.device.cuda.assemble import nvjitlink_cubin
from m40llm.device.cuda.driver import UNSUPPORTED_PTX, DriverError
from m40llm.device.gpu.compiler import argument_type, ptx_of
from m40llm.device.gpu.fingerprint import fingerprint
from m40llm.errors import DeviceError, KernelContractError
from m40llm.kernels import rms_norm
from m40llm.kernels.contract import Kernel
from m40llm.kernels.program import words

ELF = b"\x7fELF"


def fake_array(shape: tuple[int, ...], dtype: Any = np.float32) -> DeviceArray:
    """At an address that is no host's: whoever looks at an element dies."""
    return DeviceArray.at(0x7F00_0000_0000, shape, dtype, None)


def scale(x: Any, factor: Any, n: Any) -> None:
    i = cuda.grid(1)
    if i < n:
        x[i] *= factor


KERNEL = Kernel(scale, registers=32)
ARGS = (fake_array((100,)), np.float32(2), np.int32(100))


# ------------------------------------------------------------- arrays
def test_views_of_a_device_array() -> None:
    array = fake_array((3, 4, 5))
    row = array[1, 2]
    assert (row.shape, row.address - array.address) == ((5,), 4 * (20 + 10))
    assert array[1:].shape == (2, 4, 5)
    assert array.reshape(12, 5).shape == (12, 5)
    assert array.view(np.uint8).shape == (3, 4, 20)
    column = array[:, 1]
    assert not column.flags["C_CONTIGUOUS"]
    parts = list(column.contiguous_parts())
    assert [index for index, _ in parts] == [(0,), (1,), (2,)]
    assert parts[2][1].address - array.address == 4 * (2 * 20 + 5)
    with pytest.raises(ValueError, match="reshape"):
        column.reshape(-1)
    assert array[1, 0, 2].shape == ()
    assert array[1, 0, 2].address - array.address == 4 * 22


def test_parameters_as_numba_flattens_them() -> None:
    array = fake_array((3, 4))
    words = modules.flatten((array, np.float32(1.5), np.int32(-1), np.uint64(2**63)))
    assert words[:5] == [0, 0, 12, 4, array.address]
    assert words[5:9] == [3, 4, 16, 4]
    assert words[9:] == [0x3FC00000, 0xFFFFFFFF, 2**63]
    with pytest.raises(KernelContractError, match="host's memory"):
        modules.flatten((np.zeros(3),))


# ------------------------------------------------------------- fingerprints
def variant(factor: float) -> Kernel:
    def kernel(x: Any) -> None:
        x[cuda.grid(1)] *= float32(factor)

    return Kernel(kernel)


def test_a_fingerprint_covers_closures_options_and_what_is_called() -> None:
    assert fingerprint(variant(2.0)) == fingerprint(variant(2.0))
    assert fingerprint(variant(2.0)) != fingerprint(variant(3.0))
    kernel = variant(2.0)
    assert fingerprint(kernel) != fingerprint(replace(kernel, registers=40))
    assert fingerprint(kernel) != fingerprint(replace(kernel, fastmath=True))
    assert fingerprint(calling(add_one)) != fingerprint(calling(add_two))


@cuda.jit(device=True)
def add_one(x: Any) -> Any:
    return x + int32(1)


@cuda.jit(device=True)
def add_two(x: Any) -> Any:
    return x + int32(2)


def calling(function: Any) -> Kernel:
    def kernel(x: Any) -> None:
        x[0] = function(x[0])

    return Kernel(kernel)


def test_a_fingerprint_covers_what_is_read_of_our_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(x: Any) -> None:
        x[0] = words.N_ROWS

    before = fingerprint(Kernel(kernel))
    assert before == fingerprint(Kernel(kernel))
    assert before is not None
    monkeypatch.setattr(words, "N_COLS", words.N_COLS + 100)
    assert fingerprint(Kernel(kernel)) == before  # it does not read that
    monkeypatch.setattr(words, "N_ROWS", words.N_ROWS + 100)
    assert fingerprint(Kernel(kernel)) != before


def test_what_cannot_be_described_has_no_fingerprint() -> None:
    assert fingerprint(calling(object())) is None


# ------------------------------------------------------------- cubins
def test_sm_52_is_assembled_without_a_driver() -> None:
    _, ptx = ptx_of(KERNEL, tuple(map(argument_type, ARGS)), (5, 2))
    assert nvjitlink_cubin(ptx, 32, "sm_52").startswith(ELF)
    with pytest.raises(DeviceError, match="assembling for sm_52"):
        nvjitlink_cubin("no PTX", None, "sm_52")


def test_a_driver_older_than_the_ptx_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuLinkAddData refuses it; nvJitLink would not."""

    def call(function: Any, *args: Any) -> Any:
        if function is not assemble.driver.cuLinkAddData:
            return None
        raise DriverError("cuLinkAddData", UNSUPPORTED_PTX)

    monkeypatch.setattr(assemble, "call", call)
    with pytest.raises(DeviceError, match=r"UNSUPPORTED_PTX_VERSION.*: pip install -U nvidia-nvj"):
        assemble.assemble("the PTX", 32, "driver 12020 sm_52")


def test_who_assembles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assemble, "call", lambda *_: 12020)
    assert re.fullmatch(r"nvjitlink 12\.\d+ sm_52", assemble.assembler_name((5, 2), (5, 2)))
    assert assemble.assembler_name((5, 2), (9, 0)) == "driver 12020 sm_90"
    monkeypatch.setattr(assemble, "nvjitlink_assembles", lambda toolkit: False)
    assert assemble.assembler_name((5, 2), (5, 2)) == "driver 12020 sm_52"


class FakeDriver:
    """Takes cubins and gives them back."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(modules, "assembler_name", lambda *_: "nvjitlink 12.9 sm_52")
        monkeypatch.setattr(modules, "_load", self.load)
        self.loaded: list[tuple[str, bytes]] = []

    def load(self, entry: str, cubin: bytes, n_slots: int) -> modules.Function:
        self.loaded.append((entry, cubin))
        slots = (ctypes.c_uint64 * n_slots)()
        return modules.Function(None, slots, None, 0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("M40LLM_HOME", str(tmp_path))
    return tmp_path / "cuda"


def made(monkeypatch: pytest.MonkeyPatch, kernel: Kernel) -> tuple[modules.Modules, bytes]:
    """What a new process would have."""
    driver = FakeDriver(monkeypatch)
    loaded = modules.Modules((5, 2), (5, 2))
    for _ in range(2):
        loaded.function(kernel, ARGS, len(modules.flatten(ARGS)))
    assert len(driver.loaded) == 1
    return loaded, driver.loaded[0][1]


def test_a_second_start_compiles_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, float]] = []
    FakeDriver(monkeypatch)
    first = modules.Modules((5, 2), (5, 2))
    first.compiling.progress = lambda *report: told.append(report)
    first.function(KERNEL, ARGS, 9)
    stage = "compiling GPU kernels for sm_52, once: scale (1 so far)"
    assert told == [(stage, 0.0), (stage, 1.0)]
    second, cubin = made(monkeypatch, KERNEL)
    assert (first.compiling.n_compiled, second.compiling.n_compiled) == (1, 0)
    assert cubin.startswith(ELF)
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("damage", ["empty", "truncated", "flipped"])
def test_a_broken_entry_is_compiled_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    _, sound = made(monkeypatch, KERNEL)
    (path,) = folder.iterdir()
    stored = bytearray(path.read_bytes())
    stored[len(stored) // 2] ^= 1
    path.write_bytes({"empty": b"", "truncated": stored[:99], "flipped": stored}[damage])
    again, cubin = made(monkeypatch, KERNEL)
    assert again.compiling.n_compiled == 1
    assert (cubin[:4], len(cubin)) == (sound[:4], len(sound))  # but for the number in a name


def test_every_signature_has_its_own_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver(monkeypatch)
    loaded = modules.Modules((5, 2), (5, 2))
    loaded.function(KERNEL, ARGS, 9)
    loaded.function(KERNEL, (fake_array((100,), np.int32), *ARGS[1:]), 9)
    loaded.function(KERNEL, (fake_array((100, 2))[:, 0], *ARGS[1:]), 9)
    assert len({cubin for _, cubin in driver.loaded}) == 3
    assert len(list(folder.iterdir())) == 3


def test_a_missing_library_of_the_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """numba-cuda finds NVVM, but not NVRTC, in a toolkit that is not whole."""

    def ptx_of(*_: Any) -> Any:
        raise DynamicLibNotFoundError('Failure finding "libnvrtc.so.12": No such file\nat all')

    FakeDriver(monkeypatch)
    monkeypatch.setattr(modules, "ptx_of", ptx_of)
    told = r"^kernel scale: the compiler is not whole \(.*libnvrtc.*\): pip install 'numba-cuda.*$"
    with pytest.raises(DeviceError, match=told):
        modules.Modules((5, 2), (5, 2)).function(KERNEL, ARGS, 9)


def test_kernels_of_the_product_can_be_kept() -> None:
    assert fingerprint(rms_norm._compile(2, False)) is not None
