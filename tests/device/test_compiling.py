"""Who is told of a kernel that has to be compiled, and that one from the disk is none."""

import re
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pytest
from numba import cuda, float32

from m40llm import LLM
from m40llm.device import open_device
from m40llm.device.emulator import program
from m40llm.device.gpu.compiling import Compiling
from m40llm.device.gpu.ops import GpuOps
from m40llm.kernels.contract import Kernel
from m40llm.testing import write_tiny_gguf

Told = list[tuple[str, float]]
DEVICES = [pytest.param("emulator"), pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder with nothing in it."""
    monkeypatch.setenv("M40LLM_HOME", str(tmp_path))
    return tmp_path


def doubling() -> Kernel:
    """To a device, each is a new function; on disk all are one."""

    def double(x: Any) -> None:
        x[cuda.grid(1)] *= float32(2.0)

    return Kernel(double)


def launched(device: str, kernel: Kernel, *, n_times: int = 1) -> Told:
    """What a newly opened device tells of launches of a kernel."""
    told: Told = []
    ops, _ = open_device(device)
    assert isinstance(ops, GpuOps)
    ops.prepare(lambda *report: told.append(report))
    x = ops.empty((32,))
    ops.write(x, np.ones(32, np.float32))
    for _ in range(n_times):
        ops.card.launch(kernel, 1, 32, x)
    assert (ops.read(x) == 2.0**n_times).all()
    return told


@pytest.mark.parametrize("device", DEVICES)
def test_told_once_and_not_of_what_is_on_disk(device: str) -> None:
    (stage, begun), (again, done) = launched(device, doubling(), n_times=2)
    assert re.fullmatch(r"compiling GPU kernels for sm_\d+, once: double \(1 so far\)", stage)
    assert (again, begun, done) == (stage, 0.0, 1.0)
    assert launched(device, doubling()) == []


@pytest.mark.parametrize("folder", ["emulator", "emulator-ir"])
def test_half_of_it_on_disk_is_told_once(home: Path, folder: str) -> None:
    """The emulator keeps what Numba made of a kernel and what LLVM made of that."""
    launched("emulator", doubling())
    for entry in (home / folder).iterdir():
        entry.unlink()
    assert [fraction for _, fraction in launched("emulator", doubling())] == [0.0, 1.0]


def test_an_interrupt_ends_what_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    told: Told = []
    ops, _ = open_device("emulator")
    ops.prepare(lambda *report: told.append(report))
    assert isinstance(ops, GpuOps)
    x, kernel = ops.card.upload(np.ones(32, np.float32)), doubling()
    with monkeypatch.context() as patch:
        patch.setattr(program, "numba_ir", interrupt)
        with pytest.raises(KeyboardInterrupt):
            ops.card.launch(kernel, 1, 32, x)
    assert [fraction for _, fraction in told] == [0.0, 1.0]


def test_nobody_need_listen() -> None:
    compiling = Compiling("sm_52")
    for name in ("one", "two"):
        with compiling.watch() as notice:
            notice.begin(name)
    assert compiling.n_compiled == 2


@pytest.mark.parametrize("device", DEVICES)
def test_a_loaded_model_tells_in_its_requests(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whom the load told is told of the first kernel, too; Ctrl-C there ends the request."""
    told: list[str] = []

    def progress(stage: str, fraction: float) -> None:
        told.append(stage)
        if "compiling" in stage:
            raise KeyboardInterrupt

    monkeypatch.setattr(program, "_programs", WeakKeyDictionary())  # as in a new process
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    with LLM.load(path, device=device, progress=progress, decode="host") as llm:
        assert set(told) == {"loading weights"}
        with pytest.raises(KeyboardInterrupt):
            llm.logits([1, 2, 3])
    assert re.search(r"once: \w+ \(1 so far\)$", told[-1])
