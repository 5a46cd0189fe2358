"""Which tile is fastest for the matrix products of a model on this card: measured, not modelled.

For each shape of matrix and number of tokens, the tiles that gemm_choice.py thinks well of are
verified and then timed, over the model's own weights, layer after layer, as prefill reads them.
Verified: a sample of rows of W, dequantised by another kernel, times x in FP64 on the host.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from m40llm.device.gpu.ops import GpuOps
from m40llm.errors import DeviceError
from m40llm.kernels.dequantize_rows import dequantize_rows
from m40llm.kernels.gemm import gemm
from m40llm.kernels.gemm_choice import Choice, candidates
from m40llm.kernels.planes import Planes
from m40llm.model.transformer import Transformer
from m40llm.progress import Progress

N_CANDIDATES: Final = 8
N_CHECKED: Final = 32  # rows of W in a sample
N_SAMPLES: Final = 7
SAMPLE_S: Final = 0.004
MAX_MATRICES: Final = 16  # of one shape that take turns: what decides is how they come from memory
MIN_GAIN: Final = 0.01  # below it the model's choice stays: it may be noise


@dataclass(frozen=True)
class TunedRow:
    """One product; us: of a launch."""

    type: str
    n_tokens: int
    n_rows: int
    n_cols: int
    choice: str
    us: float
    tuned: str
    tuned_us: float
    n_timed: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def name_of(choice: Choice) -> str:
    """128x128, 32x64x4/8: tokens x rows (x groups) / blocks that share a tile."""
    tile, n_splits = choice
    groups = f"x{tile.n_groups}" if tile.n_groups > 1 else ""
    splits = f"/{n_splits}" if n_splits > 1 else ""
    return f"{tile.n_tokens}x{tile.n_rows}{groups}{splits}"


def matrices_of(model: Transformer) -> list[list[Planes]]:
    """The weights that prefill multiplies many tokens by, of one type and shape together."""
    found: dict[Any, list[Planes]] = {}
    for w in model.weights.layers:
        of_ffn: tuple[Any, ...] = (w.ffn_gate, w.ffn_up, w.ffn_down)
        if w.experts is not None:  # each as large as the others
            of_ffn = (w.experts.gate[0], w.experts.up[0], w.experts.down[0])
        for matrix in (w.attn_q, w.attn_k, w.attn_v, w.attn_output, *of_ffn):
            found.setdefault((matrix.type, matrix.n_rows, matrix.n_cols), []).append(matrix)
    return [matrices[:MAX_MATRICES] for matrices in found.values()]


def tune(
    model: Transformer, tokens: Sequence[int], progress: Progress | None = None
) -> Iterator[TunedRow]:
    """A row for each product, which `ops.tuned` knows from then on; the caller saves it.

    DeviceError for a product that is wrong.
    """
    assert isinstance(model.ops, GpuOps)
    groups, tell = matrices_of(model), progress or (lambda stage, fraction: None)
    todo = [(matrices, n) for matrices in groups for n in tokens]
    for i, (matrices, n_tokens) in enumerate(todo):
        w = matrices[0]
        tell(f"timing {w.type.name} {n_tokens}x{w.n_rows}x{w.n_cols}", i / len(todo))
        yield _tune_product(model.ops, matrices, n_tokens)
    tell("timing", 1.0)


def _tune_product(ops: GpuOps, matrices: list[Planes], n_tokens: int) -> TunedRow:
    w = matrices[0]
    size = n_tokens, w.n_rows, w.n_cols
    x = np.random.default_rng(0).standard_normal((n_tokens, w.n_cols), np.float32)
    on_card, out = ops.card.upload(x), ops.empty((n_tokens, w.n_rows))
    sample = _Sample(ops, w, x)
    times: dict[Choice, float] = {}
    for choice in candidates(w.type, *size, ops.card.n_sms)[:N_CANDIDATES]:

        def launch(matrix: Planes, choice: Choice = choice) -> None:
            gemm(
                matrix, on_card, out, tile=choice.tile, n_splits=choice.n_splits,
                workspace=ops.gemm_workspace(), stream=ops.card,
            )  # fmt: skip

        ops.write(out, np.full(out.shape, np.nan, np.float32))
        launch(w)
        sample.check(ops.read(out), f"{w.type.name} {size}, {name_of(choice)}")
        times[choice] = _microseconds(ops, launch, matrices, out)
    first, best = next(iter(times)), min(times, key=times.__getitem__)
    if times[best] > (1 - MIN_GAIN) * times[first]:
        best = first
    ops.tuned.set(w.type, w.n_rows, w.n_cols, n_tokens, best)
    return TunedRow(
        w.type.name, *size, name_of(first), times[first], name_of(best), times[best], len(times)
    )


class _Sample:
    """Some columns of out, in FP64, and how far FP32 sums in any order may be from them."""

    def __init__(self, ops: GpuOps, w: Planes, x: NDArray[np.float32]) -> None:
        n = min(N_CHECKED, w.n_rows)
        self._columns = np.r_[0 : n // 2, w.n_rows - (n - n // 2) : w.n_rows]
        rows = []
        for first, count in ((0, n // 2), (w.n_rows - (n - n // 2), n - n // 2)):
            part = ops.empty((count, w.n_cols))
            dequantize_rows(w, first, part, stream=ops.card)
            rows.append(ops.read(part))
        weights = np.concatenate(rows).astype(np.float64)
        self._want = x.astype(np.float64) @ weights.T
        # n_cols products and sums, and splits and groups besides
        unit = (w.n_cols + 64) * 2.0**-24
        self._bound = unit / (1 - unit) * (np.abs(x).astype(np.float64) @ np.abs(weights.T))

    def check(self, out: NDArray[np.float32], what: str) -> None:
        error = np.abs(out[:, self._columns] - self._want)
        if not (error <= self._bound).all():
            raise DeviceError(
                f"{what}: the product is wrong; please report it with `m40llm doctor`"
            )


def _microseconds(
    ops: GpuOps, launch: Callable[[Planes], None], matrices: Sequence[Planes], out: Any
) -> float:
    """Of a launch: the median of several samples, of replays of a graph of one for each matrix."""
    with ops.card.capture() as graph:
        for matrix in matrices:
            launch(matrix)
    end = out[:1]

    def seconds(n_replays: int) -> float:
        ops.read(end)
        begin = time.perf_counter()
        for _ in range(n_replays):
            graph.replay()
        ops.read(end)
        return time.perf_counter() - begin

    seconds(1)
    n_replays = max(1, round(SAMPLE_S / max(seconds(1), 1e-6)))
    samples = [seconds(n_replays) for _ in range(N_SAMPLES)]
    return 1e6 * statistics.median(samples) / (n_replays * len(matrices))
