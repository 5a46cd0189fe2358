"""What proposals gain on a card, by how often they are right.

    python benchmarks/speculate.py [--shape 8b] [--type Q4_K_M] [--draft 1b,none] [--n 4]
        [--right 0,0.5,0.7,0.8,0.9,1] [--out FILE]

Drawn weights, which agree on nothing: so the answer is made first without proposals. Then a draft
model proposes as ever, at its full cost, and each of its tokens is replaced by the one that is
known to come, or with the other probability by a wrong one. `none` proposes those without a draft
model, as a lookup would. Greedy, one sequence, the host's loop; the form of decode that a card has
without proposals is timed beside it. Verified: the answer is the one without proposals, token by
token up to the first that a rounding decides otherwise, which is said.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from environment import environment
from rows import hand_over

from m40llm.bench.decode import likely_form
from m40llm.bench.shapes import TYPES, shape_of
from m40llm.bench.synthetic import synthetic_model
from m40llm.device import open_device
from m40llm.engine.draft import DraftModel
from m40llm.engine.engine import Engine
from m40llm.engine.sampling import Chain
from m40llm.engine.sampling_params import SamplingParams
from m40llm.engine.speculate import Proposal, Proposer

N_PROMPT, N_TOKENS, N_REPEATS = 64, 128, 3


class Foreseen:
    """Implements `Proposer`: what is known to come, right with probability `right`."""

    def __init__(self, answer: list[int], right: float, n_tokens: int, draft: Proposer | None):
        self.n_tokens, self._answer, self._right, self._draft = n_tokens, answer, right, draft
        self._rng = np.random.default_rng(0)
        self.n_proposed = self.n_right = 0

    def begin(self, *, reuse_prefix: bool) -> None:
        if self._draft:
            self._draft.begin(reuse_prefix=reuse_prefix)

    def propose(
        self, prompt: Sequence[int], ids: Sequence[int], n: int, chain: Chain
    ) -> list[Proposal]:
        if self._draft:
            n = len(self._draft.propose(prompt, ids, n, chain))
        coming = self._answer[len(ids) : len(ids) + n]
        is_right = self._rng.random(len(coming)) < self._right
        self.n_proposed += len(coming)
        self.n_right += int(np.cumprod(is_right).sum())
        pairs = zip(coming, is_right, strict=True)
        return [Proposal(id if right else (id + 1) % 256, None) for id, right in pairs]


def answered(engine: Engine, prompt: list[int]) -> tuple[list[int], float]:
    """(tokens, ms a token after the first)."""
    params = SamplingParams(temperature=0, max_tokens=N_TOKENS, ignore_eos=True)
    engine.forget()
    ids, times = [], []
    for step in engine.generate(prompt, params):
        ids.append(step.token.token_id)
        times.append(time.perf_counter())
    return ids, 1e3 * (times[-1] - times[0]) / (len(ids) - 1)


def timed(engine: Engine, prompt: list[int]) -> tuple[list[int], float]:
    """The median of some answers, which are the same."""
    runs = [answered(engine, prompt) for _ in range(N_REPEATS)]
    assert all(ids == runs[0][0] for ids, _ in runs), "another answer to the same prompt"
    return runs[0][0], float(np.median([ms for _, ms in runs]))


def n_same(a: list[int], b: list[int]) -> int:
    """Tokens up to the first that differs."""
    return int(np.cumprod([x == y for x, y in zip(a, b, strict=False)]).sum())


def rows(ops: Any, a: argparse.Namespace) -> Any:
    """One a proposer and share of right proposals."""

    def drawn(shape: str, kind: str, n_logits: int) -> Engine:
        length = N_PROMPT + N_TOKENS + n_logits + 8
        room = {"max_seq_len": length, "max_tokens": N_PROMPT, "max_logits": n_logits}
        return Engine(synthetic_model(ops, shape_of(shape), kind, n_seqs=1, **room))

    engine = drawn(a.shape, a.type, a.n + 1)
    drawn_ids = np.random.default_rng(1).integers(0, engine.model.hp.vocab_size, N_PROMPT)
    prompt = [int(i) for i in drawn_ids]
    engine.decode_form = likely_form(engine.model)
    _, device_ms = timed(engine, prompt)
    form, engine.decode_form = engine.decode_form, "host"
    answer, host_ms = timed(engine, prompt)
    for name in a.draft.split(","):
        draft = None if name == "none" else DraftModel(drawn(name, a.draft_type, 1), a.n)
        for right in map(float, a.right.split(",")):
            engine.proposer = foreseen = Foreseen(answer, right, a.n, draft)
            ids, ms = timed(engine, prompt)
            engine.proposer = None
            yield {
                "bench": "speculate",
                "shape": {"model": a.shape, "type": a.type, "draft": name, "n": a.n},
                "right": right,
                "accepted": round(foreseen.n_right / max(foreseen.n_proposed, 1), 3),
                "tokens_per_s": round(1e3 / ms, 1),
                "host_tokens_per_s": round(1e3 / host_ms, 1),
                "device_tokens_per_s": round(1e3 / device_ms, 1),
                "device_form": form,
                "same_tokens": f"{n_same(ids, answer)} of {N_TOKENS}",
                **asdict(environment(ops.card)),
            }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="8b")
    parser.add_argument("--type", choices=TYPES, default="Q4_K_M")
    parser.add_argument("--draft", default="1b,none", help="shapes, or none")
    parser.add_argument("--draft-type", choices=TYPES, default="Q4_K_M")
    parser.add_argument("--n", type=int, default=4, help="proposals at a time")
    parser.add_argument("--right", default="0,0.5,0.7,0.8,0.9,1", help="of each proposal")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, help="a file to append to")
    a = parser.parse_args()
    ops, _ = open_device(a.device)
    for row in rows(ops, a):
        hand_over(row, a.out)


if __name__ == "__main__":
    main()
