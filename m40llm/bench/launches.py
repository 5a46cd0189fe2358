"""The launches of a real step, each kind of them timed by itself.

Noted as m40llm.sm52 notes those of an imagined card, so that the two can be laid side by side: the
model's own ops run over a card that notes what it is asked for. A kind is one kernel with one grid,
for one size of operands; in a step it comes once a layer, with other weights each time.

Timed: the launches of a kind, layer after layer as the step has them, in a CUDA graph that is
replayed between two events. So the weights of a layer come from memory, unless those of all layers
find room in the L2, and what the host takes to enqueue a launch is not in its time; the gap between
two launches of a graph is. What is in the L2 in a step, the activations, is there here, too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from m40llm.bench.timing import Times, Work, clock_of, replayed_ms, time_in_turn
from m40llm.device.gpu.bound import address
from m40llm.device.gpu.launches import Launches
from m40llm.device.gpu.ops import GpuOps
from m40llm.errors import DeviceError
from m40llm.kernels.contract import Dim, Kernel, ceil_div
from m40llm.kernels.planes import Planes
from m40llm.model.batch import Batch
from m40llm.model.transformer import Transformer
from m40llm.progress import Progress
from m40llm.sm52.imagined import Launch, launch_of, operand_of

SHORT_MS: Final = 1.0  # a graph that takes less is made longer
L2_FACTOR: Final = 2  # what takes turns is from memory if it is so many times the L2


@dataclass(frozen=True)
class Effort:
    """How much is made of a time.

    in_turn   launches of a kind, with other operands each, that take turns at most
    a_graph   launches of a graph that would be short, at least: its own start is shared by so many
    """

    n_samples: int = 5
    in_turn: int = 16
    a_graph: int = 32


@dataclass(frozen=True)
class Noted:
    """A launch that was made: what it was, and with what to make it again."""

    what: Launch
    kernel: Kernel
    grid: Dim
    block: Dim
    args: tuple[Any, ...]

    def again(self, card: Any) -> None:
        shared_bytes = self.what.shared_bytes
        card.launch(self.kernel, self.grid, self.block, *self.args, shared_bytes=shared_bytes)

    @property
    def replaced(self) -> str:
        """The argument that it replaces in place, if another launch would then find what a step
        does not have: out, of activations that are put where their gate was."""
        named = self.named
        is_gate = {"gate", "out"} <= set(named) and address(named["gate"]) == address(named["out"])
        return "out" if is_gate else ""

    @property
    def named(self) -> dict[str, Any]:
        return dict(zip(signature(self.kernel.function).parameters, self.args, strict=True))

    def with_argument(self, name: str, value: Any) -> "Noted":
        return replace(self, args=tuple((self.named | {name: value}).values()))


class NotingCard:
    """A card that notes what is launched through it."""

    def __init__(self, card: Any, positions: NDArray[np.int32]) -> None:
        self._card, self._positions = card, positions
        self.noted: list[Noted] = []
        self.operand = ""  # of the product that is being launched

    def __getattr__(self, name: str) -> Any:
        return getattr(self._card, name)

    def launch(
        self, kernel: Kernel, grid: Dim, block: Dim, *args: Any, shared_bytes: int = 0
    ) -> None:
        about = args, shared_bytes, self._positions, self.operand
        self.noted.append(Noted(launch_of(kernel, grid, block, *about), kernel, grid, block, args))
        self._card.launch(kernel, grid, block, *args, shared_bytes=shared_bytes)

    def naming(self, product: Callable[..., None]) -> Callable[..., None]:
        """The launch wrapper of a product, which says whose weights it multiplies by."""

        def launch(w: Planes, *args: Any, **how: Any) -> None:
            self.operand = operand_of(w)
            try:
                product(w, *args, **how)
            finally:
                self.operand = ""

        return launch


class NotedStep:
    """A forward pass that was run: its launches in order, and the logits that came of them."""

    def __init__(self, model: Transformer, batch: Batch) -> None:
        ops = model.ops
        assert isinstance(ops, GpuOps)
        card, launches = ops.card, ops.launches
        notes: Any = NotingCard(card, batch.pos)
        products = {name: notes.naming(getattr(launches, name)) for name in ("gemv", "gemm")}
        ops.card, ops.launches = notes, Launches(**products)
        try:
            self._out = model.forward(batch)
        finally:
            ops.card, ops.launches = card, launches
        self.card, self.n_tokens = card, batch.n_tokens
        self.noted: list[Noted] = notes.noted
        self.logits: NDArray[Any] = card.read(self._out)

    def kinds(self) -> dict[Launch, list[Noted]]:
        """The launches of each kind, in the order of its first one."""
        found: dict[Launch, list[Noted]] = {}
        for one in self.noted:
            found.setdefault(one.what, []).append(one)
        return found

    def check(self) -> None:
        """DeviceError where the launches, made once more, give other logits to a bit."""
        self.run_up_to(self.noted[-1])
        if not np.array_equal(self.card.read(self._out), self.logits):
            raise DeviceError("launches: the same launches give other logits than before")

    def run_up_to(self, last: Noted) -> None:
        for one in self.noted:
            one.again(self.card)
            if one is last:
                return

    def time(self, n_samples: int) -> Times:
        """Microseconds of the step, as a graph of its launches one after another. DeviceError
        where the graph gives other logits."""
        work = _captured(self.card, self.noted)
        if not np.array_equal(self.card.read(self._out), self.logits):
            raise DeviceError("launches: as a graph, a step gives other logits")
        return time_in_turn([work], 1, n_samples)[0]


def time_kinds(
    step: NotedStep, effort: Effort, l2_bytes: int | None, tell: Progress
) -> list[dict[str, Any]]:
    """A row for each kind of launch. Operands are those of the step: it runs up to the first launch
    of a kind before that is timed, and gives its logits again, to a bit, at the end."""
    rows = []
    kinds = step.kinds()
    for i, (what, noted) in enumerate(kinds.items()):
        tell(f"timing {what.kernel.name}", i / len(kinds))
        step.run_up_to(noted[0])
        rows.append(_row(what, noted, _timed(step.card, noted, effort), effort, l2_bytes))
    step.check()
    tell("timing", 1.0)
    return rows


def _timed(card: Any, noted: Sequence[Noted], effort: Effort) -> Times:
    taken = _apart(card, noted[: effort.in_turn])
    work = _captured(card, taken)
    if replayed_ms(work, 1) < SHORT_MS:
        taken *= ceil_div(effort.a_graph, len(taken))
        work = _captured(card, taken)
    return time_in_turn([work], len(taken), effort.n_samples)[0]


def _captured(card: Any, noted: Sequence[Noted]) -> Work:
    """A graph of the launches, replayed once."""
    with card.capture() as graph:
        for one in noted:
            one.again(card)
    graph.replay()
    return Work(clock_of(card), graph)


def _apart(card: Any, noted: Sequence[Noted]) -> list[Noted]:
    """The launches, with a buffer of their own for what they would replace: activations made of
    their own results a thousand times would be infinite or 0, where a division takes longer."""
    if not (name := noted[0].replaced):
        return list(noted)
    out = noted[0].named[name]
    scratch = card.alloc(out.shape, out.dtype)
    return [one.with_argument(name, scratch) for one in noted]


def _row(
    what: Launch, noted: Sequence[Noted], times: Times, effort: Effort, l2_bytes: int | None
) -> dict[str, Any]:
    n_in_turn = min(len(noted), effort.in_turn)
    return {
        "kernel": what.kernel.name.removesuffix("_kernel"),
        "operand": what.operand,
        "types": [str(each) for each in what.arg_types],
        "count": len(noted),
        "grid": list(what.grid),
        "n_threads": what.n_threads,
        "shared_bytes": what.shared_bytes,
        "n_bytes": what.work.n_bytes,
        "n_flops": what.work.n_flops,
        "us": times.median,
        "us_p20": times.p20,
        "us_p80": times.p80,
        "n_in_turn": n_in_turn,
        "is_cold": n_in_turn * what.work.n_bytes > L2_FACTOR * l2_bytes if l2_bytes else None,
    }
