"""A kernel of one's own: checked, refused with a counterexample, or what the model then runs on."""

import inspect
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba import cuda

from m40llm import SamplingParams
from m40llm.device.gpu.launches import OURS
from m40llm.errors import RequestError
from m40llm.kernels.contract import Kernel, Launcher
from m40llm.research import LLM
from m40llm.research.own_kernel import targets_of
from m40llm.testing import write_tiny_gguf

IDS = [5, 9, 200, 31]


def scale_kernel(x: Any, factor: Any) -> None:
    i = cuda.grid(1)
    if i < x.size:
        x[i // x.shape[1], i % x.shape[1]] *= factor


def short_kernel(x: Any, factor: Any) -> None:
    """It forgets the last element."""
    i = cuda.grid(1)
    if i < x.size - 1:
        x[i // x.shape[1], i % x.shape[1]] *= factor


def launching(kernel: Any, seen: list[int] | None = None) -> Callable[..., None]:
    made = Kernel(kernel, registers=32)

    def launch(x: Any, factor: float, *, stream: Launcher) -> None:
        if seen is not None:
            seen.append(x.size)
        stream.launch(made, -(-x.size // 128), 128, x, np.float32(factor))

    return launch


@pytest.fixture
def granite(loaded: Callable[..., LLM]) -> LLM:
    """A model that scales, on the emulator."""
    metadata = {"granite.embedding_scale": 2.0, "granite.logit_scale": 1.5}
    return loaded(device="emulator", arch="granite", head_dim=32, metadata=metadata)


def test_mine_is_what_runs(granite: LLM) -> None:
    before, seen = granite.logits(IDS), []
    granite.use_kernel("scale", launching(scale_kernel, seen), examples=10)
    seen.clear()
    np.testing.assert_array_equal(granite.logits(IDS), before)  # a product, rounded once, is one
    assert len(seen) == 2  # embedding and logits
    assert granite.decode_form == "host"
    granite.generate(IDS, SamplingParams(max_tokens=2))
    granite.use_kernel("scale", None)
    seen.clear()
    granite.logits(IDS)
    assert not seen


def test_a_wrong_one_is_refused_with_its_case(granite: LLM) -> None:
    before = granite.logits(IDS)
    told: list[str] = []
    with pytest.raises(RequestError, match=r"it is not scale, which stays as it was: scale\(") as e:
        granite.use_kernel(
            "scale", launching(short_kernel), progress=lambda stage, _: told.append(stage)
        )
    assert "n_cols=1" in str(e.value) or "seed=0" in str(e.value)
    assert set(told) == {"checking scale"}
    np.testing.assert_array_equal(granite.logits(IDS), before)


def test_each_can_be_checked() -> None:
    for name, ours in OURS.items():
        assert targets_of(name), name
        assert "stream" in inspect.signature(ours).parameters, name


def test_what_cannot_be_replaced(llm: LLM, granite: LLM) -> None:
    with pytest.raises(RequestError, match="name: expected one of add_rows, "):
        granite.use_kernel("norm", launching(scale_kernel))
    with pytest.raises(RequestError, match=r"name: expected one of add_rows, .* got \['scale"):
        granite.use_kernel(["scale"], launching(scale_kernel))  # type: ignore[arg-type]
    with pytest.raises(
        RequestError, match="device: expected cuda or emulator, cpu runs no kernels"
    ):
        llm.use_kernel("scale", launching(scale_kernel))
    with pytest.raises(RequestError, match="examples: expected at least 1, got 0"):
        granite.use_kernel("scale", launching(scale_kernel), examples=0)
    with pytest.raises(RequestError, match="launch: expected a function such as"):
        granite.use_kernel("scale", 7)  # type: ignore[arg-type]


OWN = "m40llm.research.own_kernel"


def test_without_hypothesis(granite: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, OWN, raising=False)
    monkeypatch.setitem(sys.modules, "m40llm.fuzz.runner", None)  # which needs it
    with pytest.raises(RequestError, match=r"use_kernel: .* is missing; try: pip install"):
        granite.use_kernel("scale", launching(scale_kernel))


PAGE = (Path(__file__).parents[2] / "docs" / "your_own_kernel.md").read_text(encoding="utf-8")
[CODE] = re.findall(r"```python\n(.*?)```", PAGE, re.S)
ON_TINY = CODE.replace("smollm2", "{path}").replace('device="auto"', 'device="cpu"')


def run_page(code: str, tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", head_dim=32, n_layers=1)
    script = tmp_path / "page.py"
    script.write_text(code.replace("{path}", str(path)), encoding="utf-8")
    runpy.run_path(str(script))


def test_the_page_is_short_and_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len([line for line in CODE.splitlines() if line.strip()]) < 60
    run_page(ON_TINY, tmp_path)
    said = capsys.readouterr().out
    assert re.fullmatch(r"largest .*\nmine: .* ms a forward\ntheirs: .* ms a forward\n", said)


def test_the_page_s_race_is_found(tmp_path: Path) -> None:
    racing = ON_TINY.replace("    cuda.syncthreads()\n    half =", "    half =")
    assert racing != ON_TINY
    message = r"launch: it is not rms_norm, which stays as it was: rms_norm\(schedule=0, n_tokens=1"
    with pytest.raises(RequestError, match=message):
        run_page(racing, tmp_path)


def test_a_refused_one_leaves_what_was_there(granite: LLM) -> None:
    seen: list[int] = []
    granite.use_kernel("scale", launching(scale_kernel, seen), examples=2)
    with pytest.raises(RequestError, match="which stays as it was"):
        granite.use_kernel("scale", launching(short_kernel))
    seen.clear()
    granite.logits(IDS)
    assert len(seen) == 2
