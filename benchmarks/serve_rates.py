"""How many tokens a second a card makes for so many requests at once, through the scheduler.

    python benchmarks/serve_rates.py [--shape 8b] [--type Q4_K_M] [--at-once 1,8,32] [--prompt 256]
        [--tokens 64] [--slots N] [--no-batch-invariant] [--form FORM] [--out FILE]

Drawn weights; each number of requests is a scheduler with as many slots, or with --slots. Decode is
what is made between the first moment at which all have their first token and the first one's end;
prefill, from the beginning to that moment, is told apart. Verified first: the answers of the
requests together are those of some of them alone, token by token and bit by bit; with
--no-batch-invariant up to the first token that a rounding decides otherwise, and the line says how
many are the same. A JSON line each.
"""

import argparse
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from environment import environment
from rows import hand_over

from m40llm.bench.decode import likely_form
from m40llm.bench.shapes import shape_of
from m40llm.bench.synthetic import synthetic_model
from m40llm.device import open_device
from m40llm.engine.decode_step import DECODE_FORMS
from m40llm.engine.engine import Engine
from m40llm.engine.job import Job
from m40llm.engine.sampling_params import SamplingParams
from m40llm.engine.scheduler import CHUNK_OF_CARDS, Scheduler
from m40llm.engine.step import Step

N_ALONE = 2  # requests that are made again, each by itself
N_REPEATS = 3


@dataclass
class Heard:
    """Of one request."""

    tokens: list[tuple[int, float]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    is_done: bool = False

    def tell(self, step: Step) -> bool:
        self.times.append(time.perf_counter())
        self.tokens.append((step.token.token_id, step.token.logprob))
        return True

    def done(self, error: Exception | None) -> None:
        if error is not None:
            raise error
        self.is_done = True


def answers(scheduler: Scheduler, engine: Engine, prompts: Any, n_tokens: int) -> list[Heard]:
    """Of all prompts at once."""
    heard = [Heard() for _ in prompts]
    params = SamplingParams(temperature=0, max_tokens=n_tokens, ignore_eos=True)
    for prompt, each in zip(prompts, heard, strict=True):
        request = engine.request([int(i) for i in prompt], params)
        scheduler.waiting.add(Job(request, each.tell, each.done))
    while scheduler.run():
        pass
    assert all(each.is_done and len(each.tokens) == n_tokens for each in heard)
    return heard


def _is_same(one: tuple[int, float], other: tuple[int, float], to_the_bit: bool) -> bool:
    return one == other if to_the_bit else one[0] == other[0]


def rates(heard: list[Heard], begin: float, n_prompt: int) -> tuple[float, float]:
    """(prefill, decode) in tokens a second."""
    all_begun = max(each.times[0] for each in heard)
    first_end = min(each.times[-1] for each in heard)
    n_made = sum(all_begun < at <= first_end for each in heard for at in each.times)
    return len(heard) * n_prompt / (all_begun - begin), n_made / (first_end - all_begun)


def measured(ops: Any, a: argparse.Namespace, n: int) -> dict[str, Any]:
    n_tokens = a.tokens + n  # others are read while the first ones make theirs
    n_slots = max(n, a.slots or n)
    model = synthetic_model(
        *(ops, shape_of(a.shape), a.type),
        n_seqs=n_slots,
        max_seq_len=a.prompt + n_tokens + 8,
        max_tokens=max(CHUNK_OF_CARDS, n_slots),
    )
    engine = Engine(model, decode_form=a.form or likely_form(model))
    engine.check_form()
    scheduler = Scheduler(engine, batch_invariant=a.batch_invariant)
    rng = np.random.default_rng(n)
    prompts = rng.integers(0, model.hp.vocab_size, (n, a.prompt))
    together = answers(scheduler, engine, prompts, n_tokens)
    n_same = []
    for i in range(min(n, N_ALONE)):
        (alone,) = answers(scheduler, engine, prompts[-1 - i][None], n_tokens)
        pairs = zip(alone.tokens, together[-1 - i].tokens, strict=True)
        n_same.append(int(np.cumprod([_is_same(*pair, a.batch_invariant) for pair in pairs]).sum()))
    assert not a.batch_invariant or min(n_same) == n_tokens, "other tokens in company"
    samples = []
    for _ in range(N_REPEATS):
        prompts = rng.integers(0, model.hp.vocab_size, (n, a.prompt))  # no prefix is reused
        begin = time.perf_counter()
        samples.append(rates(answers(scheduler, engine, prompts, n_tokens), begin, a.prompt))
    prefill, decode = np.median(samples, axis=0)
    return {
        "bench": "serve rates",
        "shape": {"model": a.shape, "type": a.type, "at_once": n, "prompt": a.prompt},
        "slots": n_slots,
        "batch_invariant": a.batch_invariant,
        "form": engine.decode_form,
        "verified_to": "tokens and log-probabilities of requests alone, bit for bit"
        if a.batch_invariant
        else f"the first {n_same} tokens of {n_tokens} are those of requests alone",
        "decode_tokens_per_s": round(float(decode), 1),
        "decode_samples": [round(float(s[1]), 1) for s in samples],
        "prefill_tokens_per_s": round(float(prefill), 1),
        **asdict(environment(ops.card)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="8b")
    parser.add_argument("--type", default="Q4_K_M")
    parser.add_argument("--at-once", default="1,8,32", help="numbers of requests")
    parser.add_argument("--prompt", type=int, default=256, help="tokens of each")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each that are timed")
    parser.add_argument("--slots", type=int, help="at least so many, of which some are idle")
    parser.add_argument("--batch-invariant", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--form", choices=DECODE_FORMS, help="of decode; else the likely fastest")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, help="a file to append to")
    a = parser.parse_args()
    ops, _ = open_device(a.device)
    for n in map(int, a.at_once.split(",")):
        hand_over(measured(ops, a, n), a.out)


if __name__ == "__main__":
    main()
