"""Rivals: the same work by torch (cuBLAS in FP32 without TF32), captured and timed the same way.

torch is no dependency: where it is not installed, or has no card, rows say so.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from m40llm.bench.timing import Times, Work, time_in_turn


@dataclass(frozen=True)
class Rival:
    """`make(torch)` makes one set of tensors on the card and returns what does the work once."""

    name: str
    make: Callable[[Any], Callable[[], Any]]


class TorchClock:
    """Events on torch's current stream."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch

    def event(self) -> Any:
        event = self._torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def elapsed_ms(self, start: Any, stop: Any) -> float:
        stop.synchronize()
        return float(start.elapsed_time(stop))


@cache
def torch_or_reason() -> tuple[Any, str]:
    """(torch, "") with TF32 off, or (None, why not)."""
    try:
        import torch
    except ImportError:
        return None, "torch is not installed"
    if not torch.cuda.is_available():
        return None, "torch sees no card"
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return torch, ""


def captured(rival: Rival | None, n_sets: int) -> tuple[Work | None, str]:
    """(one launch a set, "") or (None, why there is none). A rival's failure is no failure of
    ours."""
    if rival is None:
        return None, "torch has no such operation"
    torch, reason = torch_or_reason()
    if torch is None:
        return None, reason
    try:
        with torch.inference_mode():
            return Work(TorchClock(torch), _graph(torch, rival, n_sets)), ""
    except Exception as error:  # whatever a library raises on a card it may not support
        return None, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def time_rival(rival: Rival, n_sets: int, n_samples: int) -> Times | None:
    """By itself; None where it cannot be."""
    work, _ = captured(rival, n_sets)
    times = time_in_turn([work], n_sets, n_samples)[0] if work else None
    del work
    release()
    return times


def release() -> None:
    """Memory of rivals that nobody holds any more goes back to the card."""
    torch, _ = torch_or_reason()
    if torch is not None:
        torch.cuda.empty_cache()


def _graph(torch: Any, rival: Rival, n_sets: int) -> Any:
    runs = [rival.make(torch) for _ in range(n_sets)]
    torch.cuda.synchronize()
    side = torch.cuda.Stream()  # libraries set themselves up before a capture, off the main stream
    with torch.cuda.stream(side):
        for _ in range(2):
            runs[0]()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for run in runs:
            run()
    graph.replay()
    return _Replayable(graph, runs)


@dataclass(frozen=True)
class _Replayable:
    """A graph and the tensors that it reads and writes, which it does not keep alive."""

    graph: Any
    runs: list[Callable[[], Any]]

    def replay(self) -> None:
        self.graph.replay()


def randn(torch: Any, *shape: int, dtype: str = "float32") -> Any:
    """A tensor on the card; made in its own type, so that nothing larger lies about."""
    return torch.randn(*shape, device="cuda", dtype=getattr(torch, dtype))
