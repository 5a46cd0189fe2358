"""One answer everywhere to what is a whole number; and what is refused where it is none."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m40llm import SamplingParams
from m40llm.engine.scalars import is_number, is_whole
from m40llm.errors import RequestError
from m40llm.llm.arguments import checked_slots
from m40llm.llm.fit import checked_gpu_layers
from m40llm.llm.service import Service
from m40llm.testing import write_tiny_gguf

WHOLE = (0, 1, -1, 2**70, np.int64(3), np.uint8(3))
NONE = (True, False, np.True_, 3.0, np.float32(3), "3", None, [3], 3j)


def test_what_is_whole() -> None:
    assert all(is_whole(value) for value in WHOLE)
    assert not any(is_whole(value) for value in NONE)
    assert all(is_number(value) for value in (0, 1.5, -1, float("nan"), np.float64(2)))
    assert not any(is_number(value) for value in (True, "3", None, np.True_))


@pytest.mark.parametrize(
    ("check", "told"),
    [
        (checked_slots, "slots: expected 1 to 128, got"),
        (
            checked_gpu_layers,
            "gpu_layers: expected a number of layers from 0 on, auto or all, got",
        ),
        (lambda value: SamplingParams(top_k=value), "top_k: expected an integer from 0, got"),
    ],
)
@pytest.mark.parametrize("value", [True, 3.0, "3", np.float32(3)])
def test_each_refuses_in_its_own_words(check: Callable[[Any], Any], told: str, value: Any) -> None:
    check(np.int64(3))
    with pytest.raises(RequestError) as raised:
        check(value)
    assert str(raised.value) == f"{told} {value!r}"


def test_a_service_takes_numpys_numbers(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    how: Any = {"slots": np.int64(1), "max_waiting": np.int64(2), "chunk": np.int64(8)}
    with Service.load(path, device="cpu", **how) as service:
        assert service.most_requests == 3
    for name, least in (("max_waiting", 0), ("chunk", 1)):
        with pytest.raises(RequestError) as raised:
            Service.load(path, device="cpu", **{name: True})
        assert str(raised.value) == f"{name}: expected a whole number from {least} on, got True"
