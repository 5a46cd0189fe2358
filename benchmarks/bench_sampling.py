"""Sampling on the device, the whole chain in one launch; its tokens are the host's.

The rival of greedy is torch.argmax, that of the others torch's softmax and multinomial alone.
"""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from bounds import equal
from cases import Arrays, Case, Scale, poison
from harness import main
from rivals import Rival, randn

from m40llm.engine.sampling import choose
from m40llm.engine.sampling_params import SamplingParams
from m40llm.kernels.sampling import SamplerState, sample

POS = 100
PARAMS = {
    "greedy": SamplingParams(temperature=0),
    "top_k 40, top_p 0.95": SamplingParams(temperature=0.8, top_k=40, top_p=0.95),
    "top_p 0.95": SamplingParams(temperature=0.8, top_p=0.95),
    "penalties, top_k 40": SamplingParams(temperature=0.8, top_k=40, repetition_penalty=2.0),
}
SMALL = [("top_k 40, top_p 0.95", 2, 2000), ("greedy", 2, 2000)]
LARGE = [(name, batch, n) for n in (128256, 32000) for batch in (1, 8) for name in PARAMS]


def drawn(params: SamplingParams, batch: int, vocab_size: int) -> Arrays:
    rng = np.random.default_rng(vocab_size)
    logits = 4 * rng.standard_normal((batch, vocab_size), np.float32)
    penalties = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty)
    settings = (params.temperature, params.top_p, params.min_p, *penalties)
    history = np.zeros((batch, vocab_size), np.int32)
    history[:, : POS // 2] = 1  # tokens of the prompt
    return {
        "logits": logits,
        "seq": np.arange(batch, dtype=np.int32),
        "pos": np.full(batch, POS, np.int32),
        "settings": np.tile(np.array(settings, np.float32), (batch, 1)),
        "top_k": np.full(batch, params.top_k, np.int32),
        "seed": np.arange(batch, dtype=np.uint64),
        "bias_ids": np.full((batch, 1), -1, np.int32),
        "bias_values": np.zeros((batch, 1), np.float32),
        "history": history,
        "out": poison((batch,), np.int32),
    }


def launch(b: Any, stream: Any) -> None:
    names = ("settings", "top_k", "seed", "bias_ids", "bias_values", "history")
    state = SamplerState(**{name: b[name] for name in names})
    sample(b["logits"], b["seq"], b["pos"], state, b["out"], stream=stream)


def check(params: SamplingParams, a: Arrays, got: Arrays) -> float:
    """The host's token, seed for seed: it draws at len(prompt) + len(answer)."""
    prompt_ids = list(range(POS // 2)) * 2
    expected = [
        choose(logits, params, prompt_ids, [], int(seed))
        for logits, seed in zip(a["logits"], a["seed"], strict=True)
    ]
    return equal(got["out"], np.array(expected))


def rival_of(name: str, batch: int, vocab_size: int) -> Rival:
    def make(torch: Any) -> Any:
        logits = randn(torch, batch, vocab_size)
        if name == "greedy":
            return lambda: torch.argmax(logits, dim=1)
        return lambda: torch.multinomial(torch.softmax(logits, dim=1), 1)

    return Rival("torch.argmax" if name == "greedy" else "torch softmax, multinomial", make)


def case_of(name: str, batch: int, vocab_size: int) -> Case:
    params = PARAMS[name]
    n_passes = 2 if name.startswith("penalties") else 1  # logits and history
    return Case(
        name=f"{name}, {batch}x{vocab_size}",
        shape={"chain": name, "batch": batch, "vocab_size": vocab_size},
        arrays=lambda: drawn(params, batch, vocab_size),
        launch=launch,
        outputs=("out",),
        check=lambda a, got: check(params, a, got),
        bytes_read=4 * n_passes * batch * vocab_size,
        bytes_written=4 * batch,
        rival=rival_of(name, batch, vocab_size),
    )


def cases(scale: Scale) -> Iterator[Case]:
    yield from (case_of(*each) for each in scale.pick(SMALL, LARGE, 8))


if __name__ == "__main__":
    sys.exit(main("sampling", cases, __doc__))
