"""Word of the kernels that a card compiles: what takes seconds, the first time a model runs."""

from collections.abc import Iterator
from contextlib import contextmanager

from m40llm.progress import Progress


class Compiling:
    """Kernels compiled by this process for `target`, not found on disk: how many, whom to tell."""

    def __init__(self, target: str) -> None:
        self.target = target  # "sm_52"
        self.n_compiled = 0
        self.progress: Progress | None = None

    @contextmanager
    def watch(self) -> Iterator["Notice"]:
        """A notice of one kernel, ended at the latest when the block is left."""
        notice = Notice(self)
        try:
            yield notice
        finally:
            notice.end()


class Notice:
    """Tells, at most once, that a kernel is being compiled (0.0) and that it is done (1.0)."""

    def __init__(self, compiling: Compiling) -> None:
        self._compiling = compiling
        self._stage = ""

    def begin(self, name: str) -> None:
        """The kernel was not on disk. A second call, for a later part of the work, adds nothing."""
        if self._stage:
            return
        self._compiling.n_compiled += 1
        target, n_compiled = self._compiling.target, self._compiling.n_compiled
        self._stage = f"compiling GPU kernels for {target}, once: {name} ({n_compiled} so far)"
        self._tell(0.0)

    def end(self) -> None:
        """What was to be compiled is; nothing is told where nothing was."""
        if self._stage:
            self._tell(1.0)
            self._stage = ""

    def _tell(self, fraction: float) -> None:
        if self._compiling.progress:
            self._compiling.progress(self._stage, fraction)
