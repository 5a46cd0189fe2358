"""Job: one request on its way through the scheduler."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from m40llm.engine.request import Request
from m40llm.engine.step import Step
from m40llm.errors import DeadlineError
from m40llm.model.lora import Adapter


@dataclass(eq=False)
class Job:
    """What is to be done, and who is told of it.

    tell      each token, on the scheduler's thread, where it must not wait; False where no more are
              wanted
    done      called once, at the end: what went wrong, or None
    read      of an embedding, in place of tokens: the last hidden states of the prompt, pieces
              float32[n, n_embd] that follow one another
    client    whose it is: who has the fewest requests under way is served next
    priority  larger ones first, whoever's they are
    end_s     of time.perf_counter, after which it fails
    """

    request: Request
    tell: Callable[[Step], bool]
    done: Callable[[Exception | None], None]
    read: Callable[[NDArray[Any]], None] | None = None
    adapter: Adapter | None = None
    client: str = ""
    priority: int = 0
    end_s: float = math.inf
    is_cancelled: bool = field(default=False, init=False)  # any thread may say so

    @property
    def is_unwanted(self) -> bool:
        """Whether it was cancelled, or comes too late to anybody."""
        return self.is_cancelled or time.perf_counter() > self.end_s

    def why_unwanted(self) -> DeadlineError | None:
        """None where it was cancelled."""
        if self.is_cancelled:
            return None
        seconds, n = self.end_s - self.request.begin_s, len(self.request.ids)
        return DeadlineError(f"deadline: {seconds:g} s have passed; {n} tokens had been made")
