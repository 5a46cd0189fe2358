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
from m40llm.bench.machine import facts_of, software
from m40llm.bench.multiply_add import flops_per_s
from m40llm.bench.reading import read_bytes_per_s
from m40llm.bench.report_file import FORMAT, VERSION
from m40llm.bench.report_model import ModelBench, Needs, Sizes
from m40llm.bench.report_stages import STAGES, Stages
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
_LITTLE: Final = Effort(2, 2, 2)
TRIAL: Final = Sizes((16, 24), 16, 4, 2, _LITTLE, _LITTLE)  # on the emulator
EVENTS: Final = "CUDA events"
HOST: Final = "the host's, of an emulator: these times say nothing of a card"
# Seconds that a stage may take beside its work, before one was seen: kernels are compiled.
GUESSES: Final = {"make": 20.0, "verify": 60.0, "launches": 10.0, "prefill": 10.0, "decode": 45.0}
MEMORY_MARGIN: Final = 256 * 2**20
MAX_LETTERS: Final = 500  # letters of a failure
_READ_BYTES: Final = 2**30
_N_SAMPLES: Final = 5


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
                with self._attempt(f"{shape} {kind}"):
                    self._model(f"{shape} {kind}", shape, kind)
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
        told = "reads {:.0f} GB/s, {:.2f} TFLOP/s of FP32, {:.1f} us for an empty launch of a graph"
        self._tell(told.format(*found.values()))

    def _model(self, name: str, shape: str, kind: str) -> None:
        needs = Needs(shape, kind, self._sizes, self._ops.card.n_sms)
        wanted, free = needs.memory_bytes + MEMORY_MARGIN, self._ops.free_bytes()
        if wanted > free:
            self._skip(name, f"it needs {wanted / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
            return
        if why := self._budget.why_not("make"):
            self._skip(name, why)
            return
        with self._budget.spend("make"):
            how = self._sizes, self.document["card"]["l2_bytes"], self._progress
            bench = ModelBench(self._ops, shape, kind, *how)
        stages = Stages(bench, self._sizes, self.document["ceilings"], self._tell)
        self._run_stages(name, stages, self._reckoned(needs))

    def _reckoned(self, needs: Needs) -> dict[str, float]:
        """Seconds of each stage's work, twice what it would take at the card's ceilings."""
        ceilings = self.document["ceilings"]
        rates = ((ceilings["read_gb_per_s"], 1e9), (ceilings["fp32_tflop_per_s"], 1e12))
        times = needs.step_s(*(rate and rate * unit for rate, unit in rates))
        return {
            stage: n_decode * times["decode"] + n_prefill * times["prefill"]
            for stage, (n_decode, n_prefill) in STAGES.items()
        }

    def _run_stages(self, name: str, stages: Stages, reckoned: dict[str, float]) -> None:
        """What of the model is in time; nothing where it could not be verified."""
        self.document["models"].append(stages.entry)
        for stage in STAGES:
            if why := self._budget.why_not(stage, reckoned[stage]):
                self._skip(f"{name}, {stage}", why)
            else:
                with self._attempt(f"{name}, {stage}"), self._budget.spend(stage, reckoned[stage]):
                    getattr(stages, stage)()
            if not stages.is_verified:
                return

    def _skip(self, what: str, why: str) -> None:
        self.document["skipped"].append({"what": what, "why": why})
        self._tell(f"{what}: left out: {why}")

    @contextmanager
    def _attempt(self, what: str) -> Iterator[None]:
        """A failure is part of the report, and what comes after it is tried."""
        try:
            yield
        except Exception as error:  # on a card that nobody has seen, any
            why = in_a_line(f"{type(error).__name__}: {error}")
            self.document["failed"].append({"what": what, "why": why})
            self._tell(f"{what}: failed: {why}")
            if not isinstance(error, M40LLMError):
                self._tell("this is a bug of ours: please send the report")

    def _tell(self, line: str) -> None:
        self._progress("", 1.0)  # the line of progress goes away
        self._say(line)


def in_a_line(text: str) -> str:
    """A failure in words that can be sent: where somebody's files lie is nobody's business."""
    text = re.sub(r"(?<![\w<])(?:~|[A-Za-z]:)?[/\\][^\s:'\",;)]+", "<path>", text)
    line = "".join(c if c.isprintable() else " " for c in " ".join(text.split()))
    return line if len(line) <= MAX_LETTERS else f"{line[: MAX_LETTERS - 3]}..."


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
