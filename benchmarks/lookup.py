"""What looking up proposals in the text gains, by kind of prompt, on a real model.

    python benchmarks/lookup.py smollm2 [--device cuda] [--tokens 160] [--repeats 3] [--out FILE]

Chat, greedy, `speculate="ngram"` as it is by default. In turns: without proposals in the host's
loop, with them, and, on a card, by the form of decode that it takes by itself. How far the answers
are the same, token by token up to the first that a rounding decides otherwise, is said. A JSON line
each.
"""

import argparse
import statistics
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from environment import environment
from rows import hand_over
from speculate import n_same

from m40llm import LLM, SamplingParams

TEXT = (
    "The lighthouse at Marrow Point was built in 1868 by two brothers, Amos and Peter Hale. It "
    "stands on a rock that is cut off from the shore at high tide. For ninety years a keeper lived "
    "there and lit the lamp each evening. In 1958 the lamp was made electric, and the last keeper "
    "moved to the village. Today the tower belongs to a society of volunteers, who open it to "
    "visitors in summer."
)
CODE = """\
def total(items):
    result = 0
    for item in items:
        if item.price > 0:
            result = result + item.price * item.count
    return result
"""
MISSPELT = TEXT.replace("lighthouse", "lighthuose").replace("evening", "evning")
PROMPTS = {
    "quote": f"Copy this text word for word:\n\n{TEXT}",
    "summarise": f"Summarise this text in two sentences:\n\n{TEXT}",
    "correct": f"Correct the spelling of this text, and write the whole of it again:\n\n{MISSPELT}",
    "rename": f"Rename the variable `result` to `amount`, and write the whole function:\n\n{CODE}",
    "story": "Tell a story about a fox who learns to swim.",
    "explain": "Why is the sky blue?",
}


@contextmanager
def models(wanted: argparse.Namespace) -> Iterator[dict[str, LLM]]:
    ways: dict[str, Any] = {"host": {}, "lookup": {"speculate": "ngram"}}
    if wanted.device != "cpu":
        ways["device"] = {"decode": "auto"}
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(
                LLM.load(wanted.model, device=wanted.device, **{"decode": "host", **way})
            )
            for name, way in ways.items()
        }


def about(llm: LLM) -> dict[str, Any]:
    if llm.device_name == "cpu":
        return {"device": "cpu"}
    ops: Any = llm.transformer.ops
    return asdict(environment(ops.card))


def measure(llms: dict[str, LLM], kind: str, wanted: argparse.Namespace) -> dict[str, Any]:
    messages = [{"role": "user", "content": PROMPTS[kind]}]
    params = SamplingParams(temperature=0, max_tokens=wanted.tokens)
    rates: dict[str, list[float]] = {name: [] for name in llms}
    answers = {}
    for turn in range(wanted.repeats + 1):  # the first compiles kernels
        for name, llm in llms.items():
            answers[name] = llm.chat(messages, params)
            if turn:
                rates[name].append(answers[name].timings.tokens_per_s)
    plain, looked = answers["host"].ids, answers["lookup"]
    return {
        "kind": kind,
        "n_tokens": len(plain),
        "accepted": looked.timings.accepted_tokens,
        "proposed": looked.timings.proposed_tokens,
        **{
            f"{name}_tokens_per_s": round(statistics.median(each), 1)
            for name, each in rates.items()
        },
        **{
            f"same_as_{name}": f"{n_same(plain, answer.ids)} of {len(plain)}"
            for name, answer in answers.items()
            if name != "host"
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--kinds", default=",".join(PROMPTS))
    parser.add_argument("--out", type=Path)
    wanted = parser.parse_args()
    with models(wanted) as llms:
        for kind in wanted.kinds.split(","):
            row = {
                "bench": "lookup",
                "model": llms["host"].path.stem,
                **measure(llms, kind, wanted),
            }
            row |= about(llms["host"])
            hand_over(row, wanted.out)


if __name__ == "__main__":
    main()
