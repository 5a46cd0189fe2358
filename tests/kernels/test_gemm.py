"""Matrix product: exact on integers, for any sizes, with every type of weights."""

from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as GGMLType
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matmul_cases import (
    QUANTISED,
    error_bound,
    integer_blocks,
    integers,
    normal_blocks,
    planes_and_weights,
)

from m40llm import reference
from m40llm.errors import KernelContractError
from m40llm.gguf.blocks import FORMATS
from m40llm.kernels.gemm import MAX_TILES, Workspace, gemm, workspace_floats
from m40llm.kernels.gemm_choice import TAIL_SPLITS, TILES, choose, tail
from m40llm.kernels.gemm_tiles import Tile

seeds = st.integers(0, 2**32)


def named(value: Any) -> str | None:
    """A type's name in the test's; the default for the rest."""
    return getattr(value, "name", None)


SMALL, BIG = Tile(64, 64), Tile(128, 128)
FORMS = [  # each is compiled once, and again where blocks share a tile
    (GGMLType.F32, np.float32, BIG, 1),
    (GGMLType.F32, np.float32, Tile(32, 64, 4), 2),
    *((GGMLType.F16, np.float32, tile, n_splits) for tile in TILES for n_splits in (1, 3)),
    (GGMLType.F16, np.float16, SMALL, 1),
]
QUANTISED_FORMS = [
    *((ggml_type, SMALL) for ggml_type in QUANTISED),
    (GGMLType.Q5_K, BIG),
    *((GGMLType.Q4_K, tile) for tile in (Tile(16, 128, 4), Tile(32, 64, 4))),
]


def workspace_for(
    launcher: Any, n_tokens: int, n_rows: int, tile: Tile, n_splits: int
) -> Workspace:
    sums = launcher.poisoned((n_splits * tile.n_tiles(n_tokens, n_rows) * tile.n_outputs,))
    return Workspace(sums, launcher.upload(np.zeros(MAX_TILES, np.int32)))


@pytest.mark.parametrize(("ggml_type", "x_dtype", "tile", "n_splits"), FORMS, ids=named)
@given(
    n_tokens=st.integers(1, 150), n_rows=st.integers(1, 150), n_quads=st.integers(1, 20), seed=seeds
)
@example(n_tokens=1, n_rows=1, n_quads=1, seed=0)
@example(n_tokens=64, n_rows=128, n_quads=4, seed=0)
@example(n_tokens=129, n_rows=65, n_quads=5, seed=0)
@settings(max_examples=12)
def test_integers_are_exact(
    launcher: Any,
    ggml_type: GGMLType,
    x_dtype: type,
    tile: Tile,
    n_splits: int,
    n_tokens: int,
    n_rows: int,
    n_quads: int,
    seed: int,
) -> None:
    rng, n_cols = np.random.default_rng(seed), n_quads * (4 if ggml_type == GGMLType.F32 else 8)
    data, x = integer_blocks(rng, ggml_type, n_rows, n_cols), integers(rng, n_tokens, n_cols)
    w, weights = planes_and_weights(launcher, ggml_type, data, n_cols)
    out = launcher.poisoned((n_tokens, n_rows))
    x_device = launcher.upload(x.astype(x_dtype), read_only=True)
    workspace = workspace_for(launcher, n_tokens, n_rows, tile, n_splits)
    for _ in range(2):  # the second time with the counters as the first one has left them
        gemm(w, x_device, out, stream=launcher, tile=tile, n_splits=n_splits, workspace=workspace)
        np.testing.assert_array_equal(launcher.read(out), reference.matmul(weights, x))


@pytest.mark.parametrize(("ggml_type", "tile"), QUANTISED_FORMS, ids=named)
@given(
    n_tokens=st.integers(1, 140), n_rows=st.integers(1, 140), n_units=st.integers(1, 20), seed=seeds
)
@settings(max_examples=6)
def test_quantised_integers_are_exact(
    launcher: Any,
    ggml_type: GGMLType,
    tile: Tile,
    n_tokens: int,
    n_rows: int,
    n_units: int,
    seed: int,
) -> None:
    block = FORMATS[ggml_type].n_weights
    rng, n_cols = np.random.default_rng(seed), max(n_units * 32 // block, 1) * block
    data = integer_blocks(rng, ggml_type, n_rows, n_cols)
    x = integers(rng, n_tokens, n_cols, most=1)
    w, weights = planes_and_weights(launcher, ggml_type, data, n_cols)
    out = launcher.poisoned((n_tokens, n_rows))
    gemm(w, launcher.upload(x, read_only=True), out, stream=launcher, tile=tile)
    np.testing.assert_array_equal(launcher.read(out), reference.matmul(weights, x))


@pytest.mark.parametrize("ggml_type", [GGMLType.F16, *QUANTISED], ids=lambda t: t.name)
def test_ordinary_weights_within_the_bound(launcher: Any, ggml_type: GGMLType) -> None:
    rng = np.random.default_rng(5)
    data, x = normal_blocks(rng, ggml_type, 70, 512), rng.standard_normal((37, 512), np.float32)
    w, weights = planes_and_weights(launcher, ggml_type, data, 512)
    out = launcher.poisoned((37, 70))
    gemm(w, launcher.upload(x), out, stream=launcher, tile=SMALL)
    error = np.abs(launcher.read(out) - reference.matmul(weights, x))
    assert (error <= error_bound(ggml_type, data, x)).all()


@pytest.mark.parametrize(("has_bias", "accumulate"), [(True, False), (True, True)])
def test_bias_and_residual(launcher: Any, has_bias: bool, accumulate: bool) -> None:
    rng = np.random.default_rng(6)
    data, x = integer_blocks(rng, GGMLType.F16, 67, 40), integers(rng, 66, 40)
    w, weights = planes_and_weights(launcher, GGMLType.F16, data, 40)
    bias, before = integers(rng, 67), integers(rng, 66, 67)
    out = launcher.upload(before) if accumulate else launcher.poisoned((66, 67))
    given_bias = launcher.upload(bias, read_only=True) if has_bias else None
    gemm(w, launcher.upload(x), out, stream=launcher, bias=given_bias, accumulate=accumulate)
    expected = reference.matmul(weights, x, bias if has_bias else None)
    np.testing.assert_array_equal(launcher.read(out), expected + (before if accumulate else 0))


@pytest.mark.parametrize("tile", TILES, ids=str)
@given(seed=st.integers(0, 2**31))
@settings(max_examples=6)
def test_any_order_of_threads(launcher: Any, tile: Tile, seed: int) -> None:
    rng, shuffled = np.random.default_rng(seed), launcher.reordered(seed)
    data, x = integer_blocks(rng, GGMLType.Q4_1, 70, 96), integers(rng, 71, 96)
    w, weights = planes_and_weights(shuffled, GGMLType.Q4_1, data, 96)
    out = shuffled.poisoned((71, 70))
    workspace = workspace_for(shuffled, 71, 70, tile, 2)
    gemm(w, shuffled.upload(x), out, stream=shuffled, tile=tile, n_splits=2, workspace=workspace)
    np.testing.assert_array_equal(shuffled.read(out), reference.matmul(weights, x))


class FewMultiprocessors:
    """A card that holds few blocks, so that a small product is a large one to it."""

    def __init__(self, launcher: Any, n_sms: int) -> None:
        self.n_sms, self.launch = n_sms, launcher.launch


@given(
    n_tokens=st.integers(1, 300), n_rows=st.integers(1, 300), n_cols=st.sampled_from([16, 320]),
    n_sms=st.integers(1, 3), seed=seeds,
)  # fmt: skip
@example(n_tokens=16 * 16, n_rows=256, n_cols=320, n_sms=3, seed=0)
@example(n_tokens=17 * 16, n_rows=257, n_cols=16, n_sms=2, seed=0)
@settings(max_examples=8)
def test_many_tiles_go_in_bands_and_share_the_last(
    launcher: Any, n_tokens: int, n_rows: int, n_cols: int, n_sms: int, seed: int
) -> None:
    rng, tile = np.random.default_rng(seed), Tile(64, 64)
    few = FewMultiprocessors(launcher.reordered(seed), n_sms)
    data, x = integer_blocks(rng, GGMLType.F16, n_rows, n_cols), integers(rng, n_tokens, n_cols)
    w, weights = planes_and_weights(launcher, GGMLType.F16, data, n_cols)
    out, x_on = launcher.poisoned((n_tokens, n_rows)), launcher.upload(x)
    workspace = workspace_for(launcher, n_tokens, n_rows, tile, TAIL_SPLITS)
    for given_workspace in (workspace, None, workspace):
        gemm(w, x_on, out, stream=few, tile=tile, workspace=given_workspace)
        np.testing.assert_array_equal(launcher.read(out), reference.matmul(weights, x))


@given(n_tiles=st.integers(1, 5000), n_cols=st.integers(1, 20_000), n_sms=st.integers(1, 132))
def test_the_tail_has_room(n_tiles: int, n_cols: int, n_sms: int) -> None:
    tile = Tile(128, 128)
    n_whole, n_splits = tail(tile, n_tiles, n_cols, n_sms)
    assert n_tiles - n_sms < n_whole <= n_tiles
    assert (n_tiles - n_whole) * n_splits * tile.n_outputs <= workspace_floats(n_sms)


def test_what_it_refuses(launcher: Any) -> None:
    w, _ = planes_and_weights(launcher, GGMLType.F16, np.zeros((4, 32), np.uint8), 16)
    out = np.zeros((2, 4), np.float32)
    with pytest.raises(KernelContractError, match="x: expected at least one row"):
        gemm(w, np.zeros((0, 16), np.float32), out, stream=launcher)
    with pytest.raises(KernelContractError, match=r"x: expected float32\[2, 16\], got float64"):
        gemm(w, np.zeros((2, 16)), out, stream=launcher)
    with pytest.raises(KernelContractError, match=r"out: expected float32\[3, 4\]"):
        gemm(w, np.zeros((3, 16), np.float32), out, stream=launcher)


def test_a_workspace_too_small_is_refused(launcher: Any) -> None:
    w, _ = planes_and_weights(launcher, GGMLType.F16, np.zeros((4, 1024), np.uint8), 512)
    x, out = np.zeros((2, 512), np.float32), np.zeros((2, 4), np.float32)
    with pytest.raises(KernelContractError, match="workspace: expected room for 8,192 sums in 1"):
        gemm(w, x, out, stream=launcher, tile=SMALL, n_splits=2)


def test_an_x_of_4_gib_is_refused(launcher: Any) -> None:
    w, _ = planes_and_weights(launcher, GGMLType.F16, np.zeros((4, 2048), np.uint8), 1024)
    x, out = np.empty((1 << 20, 1024), np.float32), np.zeros((2, 4), np.float32)
    with pytest.raises(KernelContractError, match="x: expected less than 4 GiB, got 4,294,967,296"):
        gemm(w, x, out, stream=launcher)


@given(
    ggml_type=st.sampled_from([GGMLType.F16, *QUANTISED]), n_tokens=st.integers(9, 4096),
    n_rows=st.integers(1, 130_000), n_units=st.integers(1, 500),
    n_sms=st.sampled_from([2, 24, 132]),
)  # fmt: skip
def test_the_choice_finds_room(
    ggml_type: GGMLType, n_tokens: int, n_rows: int, n_units: int, n_sms: int
) -> None:
    tile, n_splits = choose(ggml_type, n_tokens, n_rows, 32 * n_units, n_sms)
    n_tiles = tile.n_tiles(n_tokens, n_rows)
    if n_splits > 1:
        assert n_tiles * n_splits * tile.n_outputs <= workspace_floats(n_sms)
        assert n_tiles <= MAX_TILES


def test_choices_that_were_measured() -> None:
    """Of those that were timed on an H100 (132 SMs), the fastest or within 3 % of it."""
    for size, measured in {
        (16, 28672, 4096): (Tile(16, 128, 4), 1),
        (32, 2048, 2048): (Tile(32, 64, 4), 8),
        (64, 28672, 4096): (Tile(64, 128), 4),
        (512, 1536, 576): (Tile(64, 128), 4),
        (512, 4096, 4096): (Tile(128, 128), 2),
        (4096, 4096, 4096): (Tile(128, 128), 1),
    }.items():
        assert choose(GGMLType.F16, *size, 132) == measured, size
