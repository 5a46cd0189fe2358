"""What the emulator counts of a launch that was only imagined: the same as of one that was made."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as GGMLType

from m40llm.device.emulator.card import EmulatedCard
from m40llm.device.emulator.counters import Counts, Traffic
from m40llm.device.gpu.ops import GpuOps
from m40llm.gguf.blocks import row_bytes
from m40llm.kernels import argmax
from m40llm.kernels.program import words
from m40llm.kernels.program.ends import StepEnds, begin_step
from m40llm.sm52 import counting
from m40llm.sm52.cards import CARDS
from m40llm.sm52.counting import Counted, counted, ratios
from m40llm.sm52.imagined import ImaginedCard, ImaginedOps, Launch

N_ROWS, N_COLS = 64, 512


@pytest.fixture(autouse=True)
def nothing_counted_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "entry_path", lambda *key: tmp_path / "/".join(key))


def product(ops: GpuOps, kind: GGMLType, n_tokens: int) -> None:
    """Of random weights, where there are any."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 60, (N_ROWS, row_bytes(kind, N_COLS)), np.uint8)
    w = ops.matrix(kind, N_ROWS, N_COLS, blocks)
    x = ops.empty((n_tokens, N_COLS))
    ops.write(x, rng.standard_normal((n_tokens, N_COLS)))
    ops.matmul(w, x, out=ops.empty((n_tokens, N_ROWS)))


def imagined(*how: Any) -> Launch:
    card = ImaginedCard(CARDS["m40-24"])
    product(ImaginedOps(card), *how)
    (launch,) = card.launches
    return launch


@pytest.mark.parametrize(
    ("kind", "n_tokens"), [(GGMLType.F16, 1), (GGMLType.Q4_K, 1), (GGMLType.Q8_0, 64)]
)
def test_as_on_a_card_with_memory(kind: GGMLType, n_tokens: int) -> None:
    """Its whole grid, of weights that are no zeros."""
    card = EmulatedCard(checks=False, count=True)
    card.n_sms = CARDS["m40-24"].n_sms
    product(GpuOps(card), kind, n_tokens)
    counts = card.emulator.counts
    assert counts is not None
    found, made = counted(imagined(kind, n_tokens)), ratios(counts)
    assert found is not None
    assert found.sectors == pytest.approx(made.sectors, rel=0.05)
    assert found.wavefronts == pytest.approx(made.wavefronts, rel=0.05)


def test_ratios() -> None:
    """Loads and stores together, a mean of requests."""
    counts = Counts(
        global_loads=Traffic(requests=3, pieces=48),
        global_stores=Traffic(requests=1, pieces=4),
        shared_loads=Traffic(requests=2, pieces=5),
    )
    assert ratios(counts) == Counted(sectors=13.0, wavefronts=2.5)
    assert ratios(Counts()) == Counted(0.0, 0.0)


def test_it_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = imagined(GGMLType.F16, 1)
    found = counted(launch)
    monkeypatch.setattr(counting, "_run", lambda launch: pytest.fail("counted again"))
    assert counted(launch) == found


def test_rows_that_the_host_has_written() -> None:
    """The kernel finds them; floats are zeros."""
    card = ImaginedCard(CARDS["m40-24"])
    ops = ImaginedOps(card)
    rows = ops.empty((3,), np.int32)
    ops.write(rows, np.array([5, 0, 7]))
    ops.take_rows(ops.empty((8, 64)), rows, out=ops.empty((3, 64)))
    table, given, _ = card.launches[0].given
    assert np.frombuffer(given.value, given.dtype).tolist() == [5, 0, 7]
    assert table.value is None
    assert counting._argument(table).shape == (8, 64)
    found = counted(card.launches[0])
    assert found is not None
    assert found.wavefronts == 0


def test_what_reads_addresses_is_not_run() -> None:
    """They would be those of nothing."""
    card = ImaginedCard(CARDS["m40-24"])
    code = card.alloc((1, words.N_WORDS), np.int64)
    begin_step(StepEnds(code, 1), stream=card)
    assert counted(card.launches[0]) is None


def test_a_row_of_logits_is_read_by_neighbours() -> None:
    """512 threads, each every 512th float: 4 sectors a warp."""
    card = ImaginedCard(CARDS["m40-24"])
    ops = ImaginedOps(card)
    argmax.argmax(ops.empty((1, 4096)), ops.empty((1,), np.int32), stream=card)
    found = counted(card.launches[0])
    assert found is not None
    assert 3.5 < found.sectors <= 4
