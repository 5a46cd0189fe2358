"""RoPE's table: each way of stretching the context against its formula, worked by hand."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from m40llm.device.cpu.ops import CpuOps
from m40llm.errors import ModelFileError
from m40llm.gguf import open_gguf
from m40llm.model.arch import architecture_of
from m40llm.model.check_tensors import check_tensors
from m40llm.model.hparams import HParams
from m40llm.model.rope import rope_angles, rope_bytes, rope_table
from m40llm.model.rope_params import RopeParams
from m40llm.model.weights import rope_factors
from m40llm.testing import write_tiny_gguf


def frequencies(rope: RopeParams, factors: np.ndarray | None = None) -> np.ndarray:
    return rope_angles(rope, 2, factors)[0][1]  # what position 1 turns by


def test_plain() -> None:
    np.testing.assert_allclose(
        frequencies(RopeParams(rope_dim=4, theta=10000.0)), [1.0, 0.01], rtol=1e-15
    )


def test_angles_are_exact_at_large_positions() -> None:
    angles, _ = rope_angles(RopeParams(rope_dim=2), 1_000_001)
    assert angles[-1, 0] == 1_000_000.0


def test_linear_divides() -> None:
    rope = RopeParams(rope_dim=4, theta=10000.0, scaling="linear", factor=4.0)
    np.testing.assert_allclose(frequencies(rope), [0.25, 0.0025], rtol=1e-15)


def test_rope_freqs_divide() -> None:
    rope = RopeParams(rope_dim=4, theta=10000.0)
    got = frequencies(rope, np.array([1.0, 8.0], np.float32))
    np.testing.assert_allclose(got, [1.0, 0.00125], rtol=1e-15)


@pytest.mark.parametrize("factor", [0.0, -1.0, np.nan, np.inf])
def test_bad_rope_freqs(factor: float) -> None:
    with pytest.raises(ModelFileError, match=r"rope_freqs\.weight"):
        frequencies(RopeParams(rope_dim=4), np.array([1.0, factor], np.float32))


def test_llama3_keeps_fast_pairs_and_stretches_slow_ones() -> None:
    """Llama 3.1's own numbers: factor 8, low 1, high 4, original context 8192."""
    rope = RopeParams(
        rope_dim=128,
        theta=500000.0,
        scaling="llama3",
        factor=8.0,
        original_context_length=8192,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
    )
    plain = 500000.0 ** (-np.arange(64) / 64)
    got = frequencies(rope)
    wavelength = 2 * math.pi / plain
    fast, slow = wavelength < 8192 / 4, wavelength > 8192
    np.testing.assert_allclose(got[fast], plain[fast], rtol=1e-14)
    np.testing.assert_allclose(got[slow], plain[slow] / 8, rtol=1e-14)
    between = ~fast & ~slow
    assert between.any()
    assert ((got[between] < plain[between]) & (got[between] > plain[between] / 8)).all()


def test_yarn() -> None:
    """Fast pairs left alone, slow ones divided, and the magnitude 1 + 0.1 ln(factor)."""
    rope = RopeParams(
        rope_dim=64,
        theta=10000.0,
        scaling="yarn",
        factor=4.0,
        original_context_length=4096,
        ext_factor=1.0,
    )
    angles, magnitude = rope_angles(rope, 2)
    plain = 10000.0 ** (-np.arange(32) / 32)
    low = math.floor(64 * math.log(4096 / (32 * 2 * math.pi)) / (2 * math.log(10000)))
    high = math.ceil(64 * math.log(4096 / (1 * 2 * math.pi)) / (2 * math.log(10000)))
    assert (low, high) == (10, 23)
    np.testing.assert_allclose(angles[1, : low + 1], plain[: low + 1], rtol=1e-14)
    np.testing.assert_allclose(angles[1, high:], plain[high:] / 4, rtol=1e-14)
    assert magnitude == pytest.approx(1 + 0.1 * math.log(4))


def test_longrope_takes_its_magnitude_from_the_file_or_derives_it() -> None:
    params = RopeParams(rope_dim=4, scaling="longrope", factor=32.0, original_context_length=4096)
    _, magnitude = rope_angles(params, 2)
    assert magnitude == pytest.approx(math.sqrt(1 + math.log(32) / math.log(4096)))
    _, magnitude = rope_angles(replace(params, attn_factor=1.25), 2)
    assert magnitude == 1.25


def test_longrope_takes_the_factors_of_its_length(tmp_path: Path) -> None:
    scaling = {"type": "longrope", "factor": 4.0, "original_context_length": 32}
    path = write_tiny_gguf(
        tmp_path / "tiny.gguf", arch="phi3", rope_factors=True, rope_scaling=scaling
    )
    with open_gguf(path) as file:
        hp = HParams.from_gguf(file)
        short, long = (rope_factors(file, hp, n) for n in (32, 33))
    assert short is not None
    assert short[-1] == 1.5
    assert long is not None
    assert long[-1] == 6.0


def test_longrope_without_its_factors_is_refused(tmp_path: Path) -> None:
    scaling = {"type": "longrope", "factor": 4.0, "original_context_length": 32}
    path = write_tiny_gguf(tmp_path / "tiny.gguf", arch="phi3", rope_scaling=scaling)
    with open_gguf(path) as file, pytest.raises(ModelFileError, match="rope_factors_short"):
        check_tensors(file, architecture_of(file), HParams.from_gguf(file))


def test_its_bytes_are_reckoned_beforehand() -> None:
    params = RopeParams(rope_dim=6)
    table = rope_table(CpuOps(), params, "half", 10)
    assert rope_bytes(params, 10) == table.cos.nbytes + table.sin.nbytes
