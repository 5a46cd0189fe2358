"""The stages of a model in a report: what each adds to the model's entry."""

from collections.abc import Callable
from typing import Any, Final

from m40llm.bench.report_model import ModelBench, Sizes

# In order; of each, how often it makes a decode step and a prefill, about.
STAGES: Final = {"verify": (2, 4), "launches": (25, 0), "prefill": (0, 16), "decode": (150, 0)}


class Stages:
    """entry: the model's part of the document, which grows; tell: is told what was found."""

    def __init__(
        self,
        bench: ModelBench,
        sizes: Sizes,
        ceilings: dict[str, float | None],
        tell: Callable[[str], None],
    ) -> None:
        self._bench, self._sizes, self._tell = bench, sizes, tell
        read = ceilings["read_gb_per_s"]
        self._read_bytes_per_s = read and read * 1e9
        self.entry: dict[str, Any] = {
            "shape": bench.shape,
            "type": bench.kind,
            "max_seq_len": sizes.max_seq_len,
            "max_tokens": sizes.n_prompt,
            "largest_logit_error": None,
            "steps": [],
            "launches": [],
            "prefill": None,
            "decode": [],
            "state": None,
        }

    @property
    def is_verified(self) -> bool:
        return self.entry["largest_logit_error"] is not None

    def verify(self) -> None:
        self.entry["largest_logit_error"] = self._bench.verify()

    def launches(self) -> None:
        """Of decode steps; those of a prefill are timed with it."""
        for n_context in self._sizes.contexts:
            self._step("decode", n_context)

    def prefill(self) -> None:
        self.entry["prefill"] = found = self._bench.prefill()
        self._say(f"prefill at {found['tokens_per_s']:,.0f} tokens/s")
        self._step("prefill", 0)
        self.entry["state"] = self._bench.state()  # as warm as it gets

    def decode(self) -> None:
        for n_context in self._sizes.contexts:
            row = self._bench.decode(n_context, self._read_bytes_per_s)
            self.entry["decode"].append(row)
            rate = f"{row['tokens_per_s']:.1f} tokens/s"
            self._say(f"decode behind {n_context} tokens at {rate}, {row['form']}")

    def _step(self, step: str, n_context: int) -> None:
        row, launches = self._bench.step(step, n_context)
        self.entry["steps"].append(row)
        self.entry["launches"] += launches
        n_launches = f"{row['n_launches']} launches of {len(launches)} kinds"
        self._say(f"{step} behind {n_context} tokens in {row['ms']:.2f} ms, {n_launches}")

    def _say(self, line: str) -> None:
        self._tell(f"{self._bench.shape} {self._bench.kind}: {line}")
