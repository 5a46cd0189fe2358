"""`m40llm bench report`: what a card does, in one document that is worth sending.

Models of real shapes with drawn weights, one after another, as far as the card's memory and the
minutes go. What is left out is in the document, with the reason, and so is what failed: a kernel
that is wrong on somebody's card is worth more than its time. docs/measure_your_card.md
"""

import gc
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from statistics import median
from typing import Any, Final

import numpy as np
from numba import cuda

from m40llm.bench.budget import Budget
from m40llm.bench.launches import Effort
from m40llm.bench.machine import facts_of, software, state_of
from m40llm.bench.multiply_add import flops_per_s
from m40llm.bench.reading import read_bytes_per_s
from m40llm.bench.report_file import FORMAT, VERSION
from m40llm.bench.report_model import ModelBench, Needs, Sizes
from m40llm.bench.timing import time_launches
from m40llm.device.gpu.ops import GpuOps
from m40llm.device.gpu.tuned import Tuned
from m40llm.errors import M40LLMError
from m40llm.kernels.contract import Kernel
from m40llm.progress import Progress, silent

Names = tuple[str, str]
"""(shape, type) of a model."""
Say = Callable[[str], None]

ON_CARD: Final = (  # what tells most comes first
    *(("1b", "Q4_K"), ("8b", "Q4_K"), ("1b", "F16")),
    *(("8b", "Q8_0"), ("1b", "Q8_0"), ("8b", "F16")),
)
ON_EMULATOR: Final = (("tiny", "Q8_0"),)
TRIAL: Final = Sizes((8, 24), 16, 4, 2, Effort(2, 2, 2))  # on the emulator
EVENTS: Final = "CUDA events"
HOST: Final = "the host's, of an emulator: these times say nothing of a card"
# Seconds that a stage may take beside its work, before one was seen: kernels are compiled.
GUESSES: Final = {"make": 20.0, "verify": 60.0, "launches": 10.0, "prefill": 10.0, "decode": 45.0}
MEMORY_MARGIN: Final = 256 * 2**20
_READ_BYTES: Final = 2**30
_N_SAMPLES: Final = 5
# How often a stage makes a decode step and a prefill, about.
_STEPS: Final = {"verify": (1, 2), "launches": (25, 0), "prefill": (0, 20), "decode": (150, 0)}


class Report:
    """The document grows while it is measured: what is in it is good at any time.

    say  is told, in a line, what was found
    """

    def __init__(
        self, ops: GpuOps, seconds: float, *, progress: Progress = silent, say: Say = print
    ) -> None:
        self._ops, self._progress, self._say = ops, progress, say
        self._is_card = ops.name != "emulator"
        self._sizes = Sizes() if self._is_card else TRIAL
        self._budget = Budget(seconds, GUESSES)
        self.document: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "is_complete": False,
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "minutes": seconds / 60,
            "seconds": 0.0,
            "clock": EVENTS if self._is_card else HOST,
            "card": facts_of(ops.card),
            "software": software(),
            "ceilings": {"read_gb_per_s": None, "fp32_tflop_per_s": None, "empty_launch_us": None},
            "models": [],
            "skipped": [],
            "failed": [],
        }

    def run(self, models: tuple[Names, ...] = ()) -> None:
        """Of the given models, or of those that tell most. KeyboardInterrupt leaves the document
        as far as it came."""
        # As it comes: what `bench tune` has kept for this card is another's choice.
        self._ops.tuned = Tuned(f"{self._ops.card.about}, as it comes")
        try:
            if self._is_card:
                with self._attempt("ceilings"):
                    self._ceilings()
            for shape, kind in models or (ON_CARD if self._is_card else ON_EMULATOR):
                self._model(shape, kind)
                gc.collect()  # the next one wants its memory
            self.document["is_complete"] = True
        finally:
            self.document["seconds"] = round(self._budget.spent, 1)

    def _ceilings(self) -> None:
        card, found = self._ops.card, self.document["ceilings"]
        self._progress("measuring the memory", 0.0)
        found["read_gb_per_s"] = read_bytes_per_s(card, _READ_BYTES) / 1e9
        self._progress("measuring the FP32 peak", 0.5)
        found["fp32_tflop_per_s"] = flops_per_s(card, _N_SAMPLES)[0] / 1e12
        found["empty_launch_us"] = _empty_launch_us(card)
        self._tell(
            "reads {:.0f} GB/s, {:.2f} TFLOP/s of FP32, an empty launch of a graph takes {:.1f} us",
            *found.values(),
        )

    def _model(self, shape: str, kind: str) -> None:
        name, ceilings = f"{shape} {kind}", self.document["ceilings"]
        needs = Needs(shape, kind, self._sizes, self._ops.card.n_sms)
        rates = ((ceilings["read_gb_per_s"], 1e9), (ceilings["fp32_tflop_per_s"], 1e12))
        times = needs.step_s(*(rate and rate * unit for rate, unit in rates))
        reckoned = {
            stage: n_decode * times["decode"] + n_prefill * times["prefill"]
            for stage, (n_decode, n_prefill) in _STEPS.items()
        }
        wanted, free = needs.memory_bytes + MEMORY_MARGIN, self._ops.free_bytes()
        if wanted > free:
            self._skip(name, f"it needs {wanted / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
            return
        if why := self._budget.why_not("make"):
            self._skip(name, why)
            return
        with self._attempt(name):
            with self._budget.spend("make"):
                bench = self._bench(shape, kind)
            self._stages(name, bench, self._entry(shape, kind), reckoned)

    def _bench(self, shape: str, kind: str) -> ModelBench:
        how = self._sizes, self.document["card"]["l2_bytes"], self._progress
        return ModelBench(self._ops, shape, kind, *how)

    def _entry(self, shape: str, kind: str) -> dict[str, Any]:
        entry = {
            "shape": shape,
            "type": kind,
            "max_seq_len": self._sizes.max_seq_len,
            "max_tokens": self._sizes.n_prompt,
            "largest_logit_error": None,
            "steps": [],
            "launches": [],
            "prefill": None,
            "decode": [],
            "state": None,
        }
        self.document["models"].append(entry)
        return entry

    def _stages(
        self, name: str, bench: ModelBench, entry: dict[str, Any], reckoned: dict[str, float]
    ) -> None:
        """What of the model is in time; nothing where it could not be verified."""

        def verify() -> None:
            entry["largest_logit_error"] = bench.verify()

        def launches() -> None:
            for n_context in self._sizes.contexts:
                self._step(name, bench, entry, "decode", n_context)

        def prefill() -> None:
            entry["prefill"] = bench.prefill()
            self._tell("{}: prefill at {:,.0f} tokens/s", name, entry["prefill"]["tokens_per_s"])
            self._step(name, bench, entry, "prefill", 0)
            entry["state"] = state_of(self._ops.card)  # as warm as it gets

        def decode() -> None:
            read = self.document["ceilings"]["read_gb_per_s"]
            for n_context in self._sizes.contexts:
                row = bench.decode(n_context, read and read * 1e9)
                entry["decode"].append(row)
                told = name, n_context, row["tokens_per_s"], row["form"]
                self._tell("{}: decode behind {} tokens at {:.1f} tokens/s, {}", *told)

        for stage in (verify, launches, prefill, decode):
            key = stage.__name__
            if why := self._budget.why_not(key, reckoned[key]):
                self._skip(f"{name}, {key}", why)
            else:
                with self._attempt(f"{name}, {key}"), self._budget.spend(key, reckoned[key]):
                    stage()
            if entry["largest_logit_error"] is None:
                return

    def _step(
        self, name: str, bench: ModelBench, entry: dict[str, Any], step: str, n_context: int
    ) -> None:
        row, launches = bench.step(step, n_context)
        entry["steps"].append(row)
        entry["launches"] += launches
        told = name, step, n_context, row["ms"], len(launches), row["n_launches"]
        self._tell("{}: {} behind {} tokens {:.2f} ms, {} kinds of {} launches", *told)

    def _skip(self, what: str, why: str) -> None:
        self.document["skipped"].append({"what": what, "why": why})
        self._tell("{}: left out: {}", what, why)

    @contextmanager
    def _attempt(self, what: str) -> Iterator[None]:
        """A failure is part of the report, and what comes after it is tried."""
        try:
            yield
        except Exception as error:  # on a card that nobody has seen, any
            why = without_paths(f"{type(error).__name__}: {error}")
            self.document["failed"].append({"what": what, "why": why})
            self._tell("{}: failed: {}", what, why)
            if not isinstance(error, M40LLMError):
                self._tell("this is a bug of ours: please send the report")

    def _tell(self, line: str, *values: Any) -> None:
        self._progress("", 1.0)  # the line of progress goes away
        self._say(line.format(*values))


def without_paths(text: str) -> str:
    """Where somebody's files lie is nobody's business."""
    return re.sub(r"(?<![\w<])(?:~|[A-Za-z]:)?[/\\][^\s:'\",;)]+", "<path>", text)


def _empty_launch_us(card: Any) -> float:
    """A launch that does nothing, in a graph of many: what any launch takes at least."""

    def nothing(out: Any) -> None:
        if cuda.grid(1) < 0:
            out[0] = 0

    kernel, out = Kernel(nothing), card.alloc((1,), np.int32)

    def launch() -> None:
        card.launch(kernel, 1, 32, out)

    launch()
    return median(time_launches(card, [launch] * 64, _N_SAMPLES).median for _ in range(3))
