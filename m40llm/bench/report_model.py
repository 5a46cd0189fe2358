"""What `m40llm bench report` measures of one model: a real shape with drawn weights, in one type.

Verified before anything is timed: a token's logits made by the kernels of prefill (gemm, attention
of many rows) and by those of decode (gemv, attention of one row), which have little in common. Then
decode by the card's own forms, which bench/decode.py verifies against the transformer's ops.
"""

import time
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from m40llm.bench.decode import FIRST_TOKEN, MAX_LOGIT_ERROR, likely_form, time_decode
from m40llm.bench.launches import Effort, NotedStep, time_kinds
from m40llm.bench.machine import state_of
from m40llm.bench.shapes import shape_of
from m40llm.bench.synthetic import hollow_model, synthetic_model
from m40llm.device.gpu.ops import GpuOps
from m40llm.errors import DeviceError
from m40llm.model.batch import Batch
from m40llm.progress import Progress
from m40llm.sm52.cards import CardSpec
from m40llm.sm52.imagined import ImaginedCard, ImaginedOps
from m40llm.sm52.steps import ImaginedSteps, Step

_MARGIN: Final = 8  # tokens of context beyond those that are timed
_PREFILL_SAMPLES: Final = 3


@dataclass(frozen=True)
class Sizes:
    """What is measured of each model.

    contexts   tokens in the cache where some are decoded: n_prompt at least
    n_prompt   tokens of the prompt, read at once
    n_tokens   that the card's own forms decode at a time, n_repeats times
    effort     of the launches of a decode step; long_effort: of a prefill, whose take longer
    """

    contexts: tuple[int, ...] = (512, 4096)
    n_prompt: int = 512
    n_tokens: int = 32
    n_repeats: int = 3
    effort: Effort = field(default_factory=Effort)
    long_effort: Effort = field(default_factory=lambda: Effort(n_samples=3, in_turn=8))

    @property
    def max_seq_len(self) -> int:
        return max(*self.contexts, self.n_prompt) + self.n_tokens + _MARGIN


def imagined_steps(
    spec: CardSpec, shape: str, kind: str, max_seq_len: int, max_tokens: int
) -> ImaginedSteps:
    """The steps of the same model on an imagined card."""
    card = ImaginedCard(spec)
    sizes = {"n_seqs": 1, "max_seq_len": max_seq_len, "max_tokens": max_tokens}
    model = hollow_model(ImaginedOps(card), shape_of(shape), kind, **sizes)
    return ImaginedSteps(card, model, max_tokens)


class Needs:
    """What a model takes of a card with so many multiprocessors: its memory, and its work."""

    def __init__(self, shape: str, kind: str, sizes: Sizes, n_sms: int) -> None:
        spec = CardSpec("here", "this card", (5, 2), n_sms, 0, 0, 0.0, 0, has_ecc=False)
        steps = imagined_steps(spec, shape, kind, sizes.max_seq_len, sizes.n_prompt)
        self._decode = _bytes_of(steps.decode(max(sizes.contexts)))
        prefill = steps.prefill(sizes.n_prompt)
        self._flops = sum(count * a.work.n_flops for a, count in prefill.launches.items())
        self.memory_bytes = steps.card.allocated_bytes

    def step_s(self, read_bytes_per_s: float | None, flops_per_s: float | None) -> dict[str, float]:
        """Seconds of a decode step and of a prefill, as far as the card's ceilings are known: twice
        what they would take at those."""
        return {
            "decode": 2 * self._decode / read_bytes_per_s if read_bytes_per_s else 0.0,
            "prefill": 2 * self._flops / flops_per_s if flops_per_s else 0.0,
        }


def _bytes_of(step: Step) -> int:
    return sum(count * launch.work.n_bytes for launch, count in step.launches.items())


class ModelBench:
    """A model on the card, and what is measured of it; each method is a stage of it."""

    def __init__(
        self, ops: GpuOps, shape: str, kind: str, sizes: Sizes, l2_bytes: int | None, tell: Progress
    ) -> None:
        self.shape, self.kind = shape, kind
        self._sizes, self._l2_bytes, self._tell = sizes, l2_bytes, tell
        self._model = synthetic_model(
            *(ops, shape_of(shape), kind),
            n_seqs=1,
            max_seq_len=sizes.max_seq_len,
            max_tokens=sizes.n_prompt,
            progress=tell,
        )
        vocab_size = self._model.hp.vocab_size
        rng = np.random.default_rng(0)
        self._ids: list[int] = rng.integers(0, vocab_size, sizes.n_prompt + 1).tolist()

    def verify(self) -> float:
        """The largest difference, behind any of the contexts, of a token's logits by prefill and by
        decode, in parts of their spread. DeviceError where it is too large."""
        largest = 0.0
        for at, n_context in enumerate(self._sizes.contexts):
            self._tell("verifying", at / len(self._sizes.contexts))
            error = self._difference(n_context)
            if not error <= MAX_LOGIT_ERROR:
                told = f"behind {n_context} tokens prefill and decode differ by"
                raise DeviceError(f"{told} {error:.2g} of the logits' spread")
            largest = max(largest, error)
        self._tell("verifying", 1.0)
        return largest

    def _difference(self, pos: int) -> float:
        """Of the logits at a position: all before it is a prompt's end, then it is one's itself."""
        first = pos - self._sizes.n_prompt
        self._logits(Batch.of((0, first, self._ids[:-1])))
        by_decode = self._logits(Batch.decode([(0, pos, self._ids[-1])], 1))
        by_prefill = self._logits(Batch.of((0, first + 1, self._ids[1:])))
        return float(np.abs(by_prefill - by_decode).max() / np.std(by_decode))

    def step(self, name: str, n_context: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """(a decode step behind so many tokens, or a prefill; its launches by kind)."""
        if name == "decode":
            batch, effort = Batch.decode([(0, n_context, FIRST_TOKEN)], 1), self._sizes.effort
        else:
            batch, effort = Batch.of((0, 0, self._ids[:-1])), self._sizes.long_effort
        step = NotedStep(self._model, batch)
        times = step.time(effort.n_samples)
        which = {"step": name, "n_context": n_context}
        row = {
            **which,
            "n_tokens": batch.n_tokens,
            "n_launches": len(step.noted),
            "ms": times.median / 1e3,
            "tokens_per_s": 1e6 * batch.n_tokens / times.median,
        }
        launches = time_kinds(step, effort, self._l2_bytes, self._tell)
        return row, [{**which, **launch} for launch in launches]

    def prefill(self) -> dict[str, Any]:
        """From the call to the last token's logits on the host, as an engine has them."""
        n, samples = self._sizes.n_prompt, []
        batch = Batch.of((0, 0, self._ids[:-1]))
        for sample in range(_PREFILL_SAMPLES):
            begin = time.perf_counter()
            self._logits(batch)
            samples.append(time.perf_counter() - begin)
            self._tell("timing prefill", (sample + 1) / _PREFILL_SAMPLES)
        seconds = median(samples)
        return {"n_tokens": n, "ms": 1e3 * seconds, "tokens_per_s": n / seconds}

    def decode(self, n_context: int, read_bytes_per_s: float | None) -> dict[str, Any]:
        """A row of `m40llm bench decode`, by the form that is likely the fastest."""
        how = self._sizes.n_tokens, read_bytes_per_s, self._tell, self._sizes.n_repeats
        form = likely_form(self._model)
        return time_decode(self._model, (self.shape, self.kind), form, n_context, *how).as_json()

    def state(self) -> dict[str, float | None] | None:
        """Of the card now."""
        assert isinstance(self._model.ops, GpuOps)
        return state_of(self._model.ops.card)

    def _logits(self, batch: Batch) -> NDArray[np.float64]:
        values = self._model.ops.read(self._model.forward(batch))[-1]
        return np.asarray(values, np.float64)
