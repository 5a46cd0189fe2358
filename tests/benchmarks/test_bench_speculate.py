"""The benchmark of proposals verifies on the emulator; times mean little there."""

import argparse

import pytest
import speculate as benchmark

from m40llm.device import open_device
from m40llm.testing.tiny_shape import TINY_SHAPE


def test_smoke(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("N_PROMPT", 4), ("N_TOKENS", 8), ("N_REPEATS", 1)):
        monkeypatch.setattr(benchmark, name, value)
    monkeypatch.setattr(benchmark, "shape_of", lambda name: TINY_SHAPE)
    monkeypatch.setattr(benchmark, "likely_form", lambda model: "host")
    ops, _ = open_device("emulator")
    a = argparse.Namespace(
        shape="tiny", type="F16", draft="tiny,none", draft_type="F16", n=3, right="0,1"
    )
    never, always, *without = benchmark.rows(ops, a)
    assert (never["accepted"], always["accepted"]) == (0, 1)
    assert [row["shape"]["draft"] for row in (never, *without)] == ["tiny", "none", "none"]
    assert all(row["same_tokens"] == "8 of 8" for row in (never, always, *without))
