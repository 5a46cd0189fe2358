"""One place for all kernel benchmarks: a case is verified, then timed, then becomes a JSON line.

    def cases(scale): yield Case(...)
    if __name__ == "__main__": main("rms_norm", cases, __doc__)

On a card: buffers are uploaded and cloned until the sets together pass the L2, one launch of each
set is captured into one graph, and replays of it are timed by events. Set 0 is verified before the
capture, the last set after the first replay. On the emulator the same launch is verified and its
traffic counted. README.md says how to read a row.
"""

import argparse
import math
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from cases import Arrays, Buffers, Case, Row, Scale
from ceilings import Ceilings, measure_ceilings
from environment import environment
from numba import cuda
from numpy.typing import NDArray
from rivals import captured, release, time_rival
from table import Table

from m40llm.bench.timing import Times, Work, time_in_turn
from m40llm.errors import M40LLMError
from m40llm.kernels.contract import Kernel

Cases = Callable[[Scale], Iterable[Case]]

L2_FACTOR = 3  # the sets together are this many times the L2
MIN_SETS, MAX_SETS = 4, 256
MAX_MEMORY_SHARE = 0.4
CEILING_BYTES = 9 * 2**28  # 2.25 GiB, far beyond any L2
N_SAMPLES, N_SAMPLES_QUICK = 20, 7


class VerificationError(Exception):
    """A kernel's result is further from the reference than its bound: nothing is timed."""


class Bench:
    """An open device, and how much to measure on it; `timed` is False on the emulator."""

    def __init__(self, card: Any, *, timed: bool, quick: bool, only: str = "") -> None:
        self.card = card
        self.timed = timed
        self.scale = Scale(card=timed, quick=quick)
        self.only = only
        self.n_samples = N_SAMPLES_QUICK if quick else N_SAMPLES
        self.environment = environment(card)

    @cached_property
    def ceilings(self) -> Ceilings:
        return measure_ceilings(self.card, CEILING_BYTES, self.n_samples)

    def run(self, stem: str, cases: Cases, limit_s: float = math.inf) -> Iterator[Row]:
        """A row a case; a failing one has `error` set; what the time did not allow is one row."""
        end, n_left_out = time.monotonic() + limit_s, 0
        for case in cases(self.scale):
            if self.only not in f"{stem} {case.name}":
                continue
            if time.monotonic() > end:
                n_left_out += 1
                continue
            try:
                yield self.measure(stem, case)
            except Exception as error:  # one case's failure is a row; the others go on
                traceback.print_exc()
                text = f"{type(error).__name__}: {error}"
                yield Row(stem, case.name, case.shape, error=text)
        if n_left_out:
            shape = {"n_cases": n_left_out, "limit_s": limit_s}
            yield Row(stem, f"{n_left_out} cases left out: time limit", shape)

    def measure(self, stem: str, case: Case) -> Row:
        """Verified, and on a card timed. VerificationError for a wrong result."""
        arrays = case.arrays()
        sets = self._sets(case, arrays)
        case.launch(sets[0], self.card)
        verified_to = self._verified(case, arrays, sets[0], 0)
        if self.timed:
            return self._timed(stem, case, arrays, sets, verified_to)
        return Row(
            stem, case.name, case.shape, verified_to,
            bytes_read=case.bytes_read, bytes_written=case.bytes_written, flops=case.n_flops,
            counters=_counters(self.card.emulator.counts),
        )  # fmt: skip

    def _sets(self, case: Case, arrays: Arrays) -> list[Buffers]:
        """One set; on a card as many as pass the L2, all as they are before a launch."""
        sets = [_uploaded_set(self.card, case, arrays)]
        if self.timed:
            n_sets = set_count(case, arrays, l2_size(self.card), self.card.free_bytes())
            sets += [_cloned_set(self.card, case, arrays, sets[0], at) for at in range(1, n_sets)]
        return sets

    def _timed(
        self, stem: str, case: Case, arrays: Arrays, sets: list[Buffers], verified_to: float
    ) -> Row:
        """Graph of one launch a set; its first replay is verified by the last set."""
        card, ceilings, n_sets = self.card, self.ceilings, len(sets)
        with card.capture() as graph:
            for buffers in sets:
                case.launch(buffers, card)
        graph.replay()
        again = self._verified(case, arrays, sets[-1], n_sets - 1)
        rival, note = captured(case.rival, n_sets)
        works = [Work(card, graph), *([rival] if rival else [])]
        times, *rivals = time_in_turn(works, n_sets, self.n_samples)
        touched = n_sets * (case.bytes_read + case.bytes_written)
        sets.clear()
        works.clear()
        del graph, buffers, rival
        release()
        row = _row(stem, case, times, ceilings, rivals[0] if rivals else None, note)
        timed = {r.name: time_rival(r, n_sets, self.n_samples) for r in case.others}
        others = {name: found.median for name, found in timed.items() if found is not None}
        cold = touched > 2 * l2_size(card)
        return replace(
            row,
            verified_to=max(verified_to, again),
            n_sets=n_sets,
            cold=cold,
            others=others or None,
        )

    def _verified(self, case: Case, arrays: Arrays, buffers: Buffers, at: int) -> float:
        outputs = {name: self.card.read(buffers[name]) for name in case.outputs}
        share = case.check(_arrays_of_set(case, arrays, at), outputs)
        if not share <= 1:
            raise VerificationError(f"{case.name}: an error is {share:.3g} times its bound")
        return share


def _row(
    stem: str, case: Case, times: Times, ceilings: Ceilings, rival: Times | None, note: str
) -> Row:
    bound, floor_us = ceilings.of(case.bytes_read, case.bytes_written, case.n_flops)
    n_bytes = case.bytes_read + case.bytes_written
    return Row(
        stem, case.name, case.shape,
        median=times.median, p20=times.p20, p80=times.p80, n_samples=times.n_samples,
        bytes_read=case.bytes_read, bytes_written=case.bytes_written, flops=case.n_flops,
        gb_per_s=n_bytes / times.median / 1e3,
        tflop_per_s=case.n_flops / times.median / 1e6,
        bound=bound.kind, ceiling=bound.rate, ceiling_source=bound.source,
        of_ceiling=floor_us / times.median,
        rival=case.rival.name if case.rival else None,
        rival_median=rival.median if rival else None,
        rival_p20=rival.p20 if rival else None,
        rival_p80=rival.p80 if rival else None,
        rival_note=note or None,
        speedup=rival.median / times.median if rival else None,
    )  # fmt: skip


def set_count(case: Case, arrays: Arrays, l2_bytes: int, free_bytes: int) -> int:
    """Sets whose touched bytes together are L2_FACTOR times the L2, as far as memory goes."""
    touched = max(case.bytes_read + case.bytes_written, 1)
    wanted = min(max(math.ceil(L2_FACTOR * l2_bytes / touched), MIN_SETS), MAX_SETS)
    kept = {name: a for name, a in arrays.items() if name not in case.shared}
    held = sum(a[0].nbytes if name in case.stacked else a.nbytes for name, a in kept.items())
    return max(2, min(wanted, int(MAX_MEMORY_SHARE * free_bytes / max(held, 1))))


def _arrays_of_set(case: Case, arrays: Arrays, at: int) -> Arrays:
    return {name: a[at % len(a)] if name in case.stacked else a for name, a in arrays.items()}


def _uploaded_set(card: Any, case: Case, arrays: Arrays) -> Buffers:
    return {name: _uploaded(card, a) for name, a in _arrays_of_set(case, arrays, 0).items()}


def _uploaded(card: Any, values: NDArray[Any]) -> Any:
    buffer = card.alloc(values.shape, values.dtype)
    card.write(buffer, np.ascontiguousarray(values))
    return buffer


def _cloned_set(card: Any, case: Case, arrays: Arrays, first: Buffers, at: int) -> Buffers:
    """Copied on the card, which is faster than uploading again."""
    buffers = {}
    for name, buffer in first.items():
        if name in case.stacked:
            buffers[name] = _uploaded(card, arrays[name][at % len(arrays[name])])
        elif name in case.shared:
            buffers[name] = buffer
        else:
            buffers[name] = card.alloc(buffer.shape, buffer.dtype)
            n = math.prod(buffer.shape)
            grid = min(-(-n // 256), 16 * card.n_sms)
            card.launch(_clone_kernel(), grid, 256, buffer.reshape(n), buffers[name].reshape(n))
    return buffers


@cache
def _clone_kernel() -> Kernel:
    def clone(x: Any, y: Any) -> None:
        for at in range(cuda.grid(1), x.size, cuda.gridsize(1)):
            y[at] = x[at]

    return Kernel(clone)


def _counters(counts: Any) -> dict[str, float]:
    loads, stores = counts.global_loads, counts.global_stores
    return {
        "load_sectors": loads.pieces,
        "load_bytes": loads.bytes,
        "store_sectors": stores.pieces,
        "store_bytes": stores.bytes,
        "bank_conflicts": counts.bank_conflicts,
        "lanes_a_load": loads.lanes_a_request,
    }


def l2_size(card: Any) -> int:
    """Bytes of the card's L2; 64 MiB where it does not say."""
    if card.name.startswith("cuda:"):
        return int(cuda.get_current_device().L2_CACHE_SIZE)
    return 2**26


def open_card(device: str) -> Any:
    """`cuda`, `cuda:N`, or `emulator` with its checks and counters on."""
    if device == "emulator":
        from m40llm.device.emulator.card import EmulatedCard

        return EmulatedCard(count=True)
    from m40llm.device.cuda.card import CudaCard
    from m40llm.device.cuda.choose import choose_card

    return CudaCard(choose_card(int(device[5:]) if device.startswith("cuda:") else None).index)


def arguments(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or emulator")
    parser.add_argument("--quick", action="store_true", help="fewer shapes and samples")
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    parser.add_argument("--out", type=Path, help="append the JSON lines to this file")
    return parser


def open_bench(args: argparse.Namespace) -> Bench:
    try:
        card = open_card(args.device)
    except M40LLMError as error:
        raise SystemExit(f"error: {error}") from None
    return Bench(card, timed=args.device != "emulator", quick=args.quick, only=args.only)


def report(bench: Bench, stem: str, cases: Cases, out: Path | None, limit_s: float) -> list[Row]:
    """Runs the cases; each row is printed, and written, as soon as it is there."""
    rows, table = [], Table(stem, timed=bench.timed)
    for row in bench.run(stem, cases, limit_s):
        rows.append(row)
        table.add(row)
        if out:
            with out.open("a", encoding="utf-8") as file:
                file.write(row.line(bench.environment) + "\n")
    table.print()
    return rows


def main(stem: str, cases: Cases, doc: str | None, argv: list[str] | None = None) -> int:
    """The command of one benchmark; 1 if a case failed."""
    args = arguments((doc or stem).splitlines()[0]).parse_args(argv)
    rows = report(open_bench(args), stem, cases, args.out, math.inf)
    return 1 if any(row.error for row in rows) else 0
