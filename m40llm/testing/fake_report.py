"""A report of a card that nobody has: made of launches that are imagined, in times of one's own."""

from collections.abc import Callable
from typing import Any

from m40llm.bench.report_file import FORMAT, VERSION
from m40llm.bench.report_model import imagined_steps
from m40llm.sm52.cards import CardSpec
from m40llm.sm52.imagined import Launch

MODEL = {"shape": "tiny", "type": "Q8_0", "max_seq_len": 64, "max_tokens": 16}
N_CONTEXT = 24


def launches_of(
    card: CardSpec, us: Callable[[Launch], float]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(steps, launches) of a report on this card."""
    imagined = imagined_steps(card, *MODEL.values())  # type: ignore[arg-type]
    steps, launches = [], []
    for name, n_context, n_tokens in (("decode", N_CONTEXT, 1), ("prefill", 0, 16)):
        step = imagined.decode(n_context) if name == "decode" else imagined.prefill(n_tokens)
        which = {"step": name, "n_context": n_context}
        total = sum(n * us(launch) for launch, n in step.launches.items()) / 1e3
        rate = 1e3 * n_tokens / total
        steps.append({**which, "n_tokens": n_tokens, "ms": total, "tokens_per_s": rate})
        for what, count in step.launches.items():
            launches.append(
                {
                    **which,
                    "kernel": what.kernel.name.removesuffix("_kernel"),
                    "operand": what.operand,
                    "count": count,
                    "grid": list(what.grid),
                    "n_threads": what.n_threads,
                    "shared_bytes": what.shared_bytes,
                    "n_bytes": what.work.n_bytes,
                    "n_flops": what.work.n_flops,
                    "us": us(what),
                }
            )
    return steps, launches


def fake_report(
    card: CardSpec, us: Callable[[Launch], float] = lambda launch: 7.0, name: str = "Tesla M40"
) -> dict[str, Any]:
    """What is read of a report; the driver calls the card by this name."""
    steps, launches = launches_of(card, us)
    decode = {"form": "graph", "kv": N_CONTEXT, "n_tokens": 32, "ms": 0.5, "tokens_per_s": 2e3}
    return {
        "format": FORMAT,
        "version": VERSION,
        "is_complete": True,
        "date": "2026-11-28",
        "clock": "CUDA events",
        "card": {
            "name": name,
            "capability": "5.2",
            "code_for": "sm_52",
            "n_sms": card.n_sms,
            "memory_bytes": card.memory_bytes - 2**28,
            "ecc": "on",
            "driver": "535.1",
        },
        "software": {"m40llm": "0.1.0", "code": "0"},
        "ceilings": {"read_gb_per_s": 200.5, "fp32_tflop_per_s": 6.5},
        "models": [
            {
                **MODEL,
                "steps": steps,
                "launches": launches,
                "decode": [decode],
                "prefill": {"n_tokens": 16, "ms": 2.0, "tokens_per_s": 8e3},
            }
        ],
        "skipped": [{"what": "8b F16", "why": "it needs 16.7 GB, 11.0 GB are free"}],
        "failed": [],
    }
