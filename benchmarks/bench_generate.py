"""How fast a model answers: time to first token, decode and prefill rates, peak memory.

    python benchmarks/bench_generate.py smollm2 [--device cpu] [--repeats 5] [--out FILE.jsonl]

Verified before it is timed: a decode step must give the logits that one prefill gives at that
position. Prints medians with the 20th and 80th percentile, and one JSON line a row.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from m40llm import LLM, SamplingParams, __version__

PROMPT_TOKENS = 32
DECODE_TOKENS = 64
PREFILL_TOKENS = 512


def drawn_ids(llm: LLM, n: int, seed: int) -> list[int]:
    """Token ids that no cache can know; special ones left out by drawing from the middle."""
    size = llm.hparams.vocab_size
    return np.random.default_rng(seed).integers(size // 10, size, n).tolist()


def verify(llm: LLM) -> float:
    """Largest difference between decode's and prefill's logits over 8 positions; exits if wide."""
    ids = drawn_ids(llm, PROMPT_TOKENS, seed=0)
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    completion = llm.generate(ids, params)
    logits = llm.logits(ids + completion.ids)
    at = range(len(ids) - 1, len(ids) + len(completion.ids) - 1)
    best, chosen = logits[at].max(axis=1), logits[list(at), completion.ids]
    difference = float((best - chosen).max())
    if difference > 2e-3:
        sys.exit(f"verification failed: a greedy token is {difference} below the best logit")
    return difference


def repeated(measure: Callable[[int], float], n: int) -> dict[str, float]:
    """Median and percentiles of n runs, each with its own seed, after one that is thrown away."""
    measure(0)
    values = sorted(measure(seed) for seed in range(1, n + 1))
    return {
        "median": statistics.median(values),
        "p20": values[int(0.2 * (n - 1))],
        "p80": values[-1 - int(0.2 * (n - 1))],
    }


def decode_rate(llm: LLM, seed: int) -> float:
    """Tokens a second over DECODE_TOKENS after a prompt of PROMPT_TOKENS."""
    params = SamplingParams(temperature=0, max_tokens=DECODE_TOKENS, ignore_eos=True)
    return llm.generate(drawn_ids(llm, PROMPT_TOKENS, seed), params).timings.tokens_per_s


def ttft_ms(llm: LLM, seed: int) -> float:
    """Time to the first token of a prompt of PROMPT_TOKENS."""
    params = SamplingParams(temperature=0, max_tokens=1)
    return 1e3 * llm.generate(drawn_ids(llm, PROMPT_TOKENS, seed), params).timings.ttft_s


def prefill_rate(llm: LLM, seed: int) -> float:
    """Prompt tokens a second for a prompt of PREFILL_TOKENS, or the whole context if shorter."""
    n = min(PREFILL_TOKENS, llm.max_seq_len)
    params = SamplingParams(temperature=0, max_tokens=1)
    return n / llm.generate(drawn_ids(llm, n, seed), params).timings.prefill_s


def cold_start(model: str, device: str, seed: int) -> float:
    """Seconds of a new process from its start to its first token, caches warm."""
    code = (
        "import sys; from m40llm import LLM, SamplingParams;"
        "llm = LLM.load(sys.argv[1], device=sys.argv[2]);"
        "llm.generate([5] * 8, SamplingParams(temperature=0, max_tokens=1))"
    )
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, model, device], check=True)
    return time.perf_counter() - begin


def measure(model: str, device: str, repeats: int) -> list[dict[str, Any]]:
    common = {
        "model": Path(model).name,
        "cpu": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "m40llm": __version__,
        "commit": commit(),
    }
    with LLM.load(model, device=device) as llm:
        common["device"], common["decode"] = llm.device_name, llm.decode_form
        common["verified_to"] = verify(llm)
        measures: dict[str, tuple[str, Callable[[LLM, int], float]]] = {
            "decode": ("tokens/s", decode_rate),
            "TPOT": ("ms", lambda llm, seed: 1e3 / decode_rate(llm, seed)),
            f"TTFT, {PROMPT_TOKENS} tokens": ("ms", ttft_ms),
            f"prefill, {min(PREFILL_TOKENS, llm.max_seq_len)} tokens": ("tokens/s", prefill_rate),
        }
        rows = [
            {"row": name, "unit": unit, **repeated(partial(run, llm), repeats)}
            for name, (unit, run) in measures.items()
        ]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    cold = repeated(lambda s: cold_start(model, device, s), max(3, repeats // 2))
    rows.append({"row": "cold process to first token", "unit": "s", **cold})
    rows.append({"row": "peak memory", "unit": "MiB", "median": peak, "p20": peak, "p80": peak})
    return [{**row, **common} for row in rows]


def commit() -> str:
    ask = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    answer = subprocess.run(ask, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a GGUF file or a known name, e.g. smollm2")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="append the JSON lines to this file")
    args = parser.parse_args()
    rows = measure(args.model, args.device, args.repeats)
    for row in rows:
        print(
            f"{row['row']:<28} {row['median']:>9.2f} {row['unit']:<9}"
            f" [{row['p20']:.2f}, {row['p80']:.2f}]"
        )
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if args.out:
        with args.out.open("a", encoding="utf-8") as out:
            out.write(lines)
    else:
        print(lines, end="")


if __name__ == "__main__":
    main()
