"""Matrix x vector as an instruction: the grid shares the rows, a block's warps share its items.

An item is a group of rows (rows.py) by CHUNK_COLS columns: one warp multiplies it, adds over its
lanes, and leaves a partial result for each row and sequence in shared memory. A thread then adds
up the partial results of one row and sequence, in the order of the columns, over all stages of x.
So no sum depends on the grid, and all warps are busy where a block has few rows.

The weights that come next are loaded while the last are multiplied, and the first of all before
the barrier: they depend on nothing. That keeps the memory busy between instructions.

over the size law: `product` is one function so that two items' weights stay in registers.
"""

from functools import cache
from typing import Any

from gguf import GGMLQuantizationType as GGMLType
from numba import cuda, float32, int32, int64, uint16, uint32

from m40llm.kernels.intrinsics import uint_as_float
from m40llm.kernels.planes import DENSE, LAYOUTS
from m40llm.kernels.program import words
from m40llm.kernels.program.barrier import wait
from m40llm.kernels.program.cursor import Extent, advance, enter, segment_of
from m40llm.kernels.program.epilogue import LOWEST, finish_of, gather_of
from m40llm.kernels.program.form import (
    CHUNK_COLS,
    PANEL_RESULTS,
    Form,
    Pool,
    max_stage_cols,
    rows_a_warp,
)
from m40llm.kernels.program.rows import rows_of
from m40llm.kernels.program.stage import norm_scales, stage_of
from m40llm.kernels.reduce import FULL_MASK, WARP_SIZE
from m40llm.kernels.unit_product import load_unit, multiply_unit
from m40llm.kernels.unpack import LANES, RESULT_SCALE
from m40llm.kernels.views import array_at, part_of


@cache
def warp_totals(n: int) -> Any:
    """totals(acc): acc[0] of lane l is the warp's sum of acc[l // (32 / n)]; n a power of two.

    n - 1 shuffles and log2(32 / n) more, where n sums of their own would take 5 n.
    """

    @cuda.jit(device=True, forceinline=True)
    def totals(acc: Any) -> None:
        lane = cuda.threadIdx.x & 31
        width, half = 16, n // 2
        while half > 0:
            is_upper = lane & width != 0
            for i in range(half):
                low, high = acc[i], acc[i + half]
                given = low if is_upper else high
                kept = high if is_upper else low
                acc[i] = kept + cuda.shfl_xor_sync(FULL_MASK, given, width)
            width //= 2
            half //= 2
        while width > 0:
            acc[0] += cuda.shfl_xor_sync(FULL_MASK, acc[0], width)
            width //= 2

    return totals


def _scale_kind(type: GGMLType) -> Any:
    """The type of the plane of scales."""
    if type in DENSE:
        return uint32
    head = LAYOUTS[type].head
    return uint16 if head.stop - head.start == 2 else uint32


@cache
def _load_of(form: Form, type: GGMLType) -> Any:
    """load(w, n_rows, kind, group, unit, n_units, words, high, packed): if the unit exists."""
    n = rows_a_warp(type, form.n_seqs)
    find_rows, load_words = rows_of(form, n), load_unit(type, n)
    half, scale_kind = n // 2, _scale_kind(type)

    @cuda.jit(device=True, forceinline=True)
    def load(
        w: Any, n_rows: Any, kind: Any, group: Any, unit: Any, n_units: Any,
        now: Any, high: Any, packed: Any,
    ) -> None:  # fmt: skip
        rows = cuda.local.array(n, int64)
        if unit < n_units:
            first, jump = find_rows(kind, n_rows, group)
            for r in range(n):
                row = first + r if r < half else first + r - half + jump
                rows[r] = int64(min(row, n_rows - 1))  # beyond: multiplied, not stored
            quants = array_at(w[words.QUANTS], (n_rows, w[words.QUANT_WORDS]), uint32)
            highs = array_at(w[words.HIGHS], (n_rows, w[words.HIGH_WORDS]), uint32)
            scales = array_at(w[words.SCALES], (n_rows, w[words.SCALE_WORDS]), scale_kind)
            load_words(quants, highs, scales, rows, unit, now, high, packed)

    return load


@cache
def product_of(form: Form, type: GGMLType) -> Any:
    """product(w, arrived, target, waits, pool, scratch): the instruction w; `waits` for the
    barrier's `target` arrivals."""
    n_seqs, n = form.n_seqs, rows_a_warp(type, form.n_seqs)
    n_results = n * n_seqs
    panel_groups, lanes_a_result = PANEL_RESULTS // n_results, WARP_SIZE // n_results
    lane_cols = LANES[type].n_cols
    chunk_units = CHUNK_COLS // lane_cols
    n_passes = chunk_units // WARP_SIZE
    pool_of = Pool(type, n_seqs)
    pool_of.check()
    n_staged, n_sums, n_partials = pool_of.n_staged, pool_of.n_sums, pool_of.n_partials
    most = max_stage_cols(n_seqs)
    load = _load_of(form, type)
    multiply = multiply_unit(type, n_seqs, n, most, most * n_seqs)
    totals, norms, stage = warp_totals(n_results), norm_scales(n_seqs), stage_of(type, n_seqs)
    finish, gather = finish_of(form, n), gather_of(form)
    result_scale = 1.0 if type in DENSE else 1.0 / RESULT_SCALE

    @cuda.jit(device=True, forceinline=True)
    def product(w: Any, arrived: Any, target: Any, waits: Any, pool: Any, scratch: Any) -> None:
        acc = cuda.local.array(n_results, float32)
        now = cuda.local.array((n, 4), uint32)
        now_high = cuda.local.array((n, 2), uint32)
        now_packed = cuda.local.array((n, 4), uint32)
        then = cuda.local.array((n, 4), uint32)
        then_high = cuda.local.array((n, 2), uint32)
        then_packed = cuda.local.array((n, 4), uint32)
        scale = cuda.local.array(n_seqs, float32)
        staged = part_of(pool, 0, n_staged, float32)
        sums = part_of(pool, n_staged, n_sums, float32)
        partials = part_of(pool, n_staged + n_sums, n_partials, float32)

        kind, n_rows, n_cols = int32(w[words.KIND]), int32(w[words.N_ROWS]), int32(w[words.N_COLS])
        stage_chunks = int32(w[words.STAGE_COLS]) // int32(CHUNK_COLS)
        n_units = int32(n_cols // int32(lane_cols))
        n_chunks = int32((n_cols + CHUNK_COLS - 1) // CHUNK_COLS)
        n_groups = uint32((n_rows + n - 1) // n)
        first_group = int32(uint32(cuda.blockIdx.x) * n_groups // uint32(cuda.gridDim.x))
        end_group = int32(uint32(cuda.blockIdx.x + 1) * n_groups // uint32(cuda.gridDim.x))
        n_stages = int32(uint32(n_chunks + stage_chunks - 1) // uint32(stage_chunks))
        n_panels = int32((end_group - first_group + panel_groups - 1) // panel_groups)
        n_segments = int32(n_panels * n_stages)
        extent = Extent(first_group, end_group, n_chunks, stage_chunks, n_stages, n_segments)
        x = array_at(w[words.X], (n_seqs, n_cols), float32)
        norm = array_at(w[words.NORM], (n_cols,), float32)
        warp, lane = int32(cuda.threadIdx.x >> 5), int32(cuda.threadIdx.x & 31)

        # The first item's weights, before anything that they do not depend on.
        at_segment, group, chunk = enter(extent, int32(0), panel_groups, warp)
        if at_segment < n_segments:
            unit = int32(chunk * chunk_units + lane)
            load(w, n_rows, kind, group, unit, n_units, now, now_high, now_packed)
        if waits:
            wait(arrived, target)
        if w[words.NORM] != 0 and n_segments > 0:
            norms(x, uint_as_float(uint32(w[words.EPS])), scale, scratch)

        total = float32(0)
        thread_best, thread_top, thread_mass = int64(-1), float32(LOWEST), float32(0)
        for segment in range(n_segments):
            panel, panel_end, first_chunk, end_chunk = segment_of(
                extent, int32(segment), panel_groups
            )
            n_here = int32(end_chunk - first_chunk)
            if n_stages > 1 or segment == 0:
                first_col = int32(first_chunk * CHUNK_COLS)
                n_cols_here = int32(min(n_here * CHUNK_COLS, n_cols - first_col))
                cuda.syncthreads()  # nobody reads the stage before any more
                stage(x, norm, w[words.NORM] != 0, scale, first_col, n_cols_here, staged, sums)
            cuda.syncthreads()
            while at_segment == segment:
                for i in range(n_results):
                    acc[i] = float32(0)
                item_group = group
                item = uint32((group - panel) * n_here + (chunk - first_chunk))
                first_unit = int32(chunk * chunk_units + lane)
                staged_unit = int32((chunk - first_chunk) * chunk_units + lane)
                at_segment, group, chunk = advance(
                    extent, at_segment, group, chunk, panel_groups, warp
                )
                for one_pass in range(n_passes):
                    unit = int32(first_unit + one_pass * WARP_SIZE)
                    if one_pass < n_passes - 1:
                        next_group, next_unit = item_group, int32(unit + WARP_SIZE)
                    else:
                        next_group, next_unit = group, int32(chunk * chunk_units + lane)
                        if at_segment >= n_segments:
                            next_unit = n_units
                    load(
                        w, n_rows, kind, next_group, next_unit, n_units,
                        then, then_high, then_packed,
                    )  # fmt: skip
                    if unit < n_units:
                        multiply(
                            now, now_high, now_packed, unit, int32(staged_unit + one_pass * 32),
                            staged, sums, acc,
                        )  # fmt: skip
                    for r in range(n):
                        for k in range(4):
                            now[r, k], now_packed[r, k] = then[r, k], then_packed[r, k]
                        now_high[r, 0], now_high[r, 1] = then_high[r, 0], then_high[r, 1]
                totals(acc)
                if lane % lanes_a_result == 0:
                    partials[uint32(item * n_results + lane // lanes_a_result)] = acc[0]
            cuda.syncthreads()
            mine = uint32(cuda.threadIdx.x)
            if mine < (panel_end - panel) * n_results:
                at = uint32(mine // uint32(n_results) * uint32(n_here * n_results))
                at += mine % uint32(n_results)
                for other in range(n_here):
                    total += partials[uint32(at + other * n_results)]
            if end_chunk == n_chunks:
                thread_best, thread_top, thread_mass = finish(
                    w, kind, total * float32(result_scale), panel, panel_end, n_rows, partials,
                    thread_best, thread_top, thread_mass,
                )  # fmt: skip
                total = float32(0)
        if kind == words.LOGITS:
            gather(w, thread_best, thread_top, thread_mass, pool)

    return product
