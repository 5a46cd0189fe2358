"""What was measured on a card beside what is projected for it: `m40llm sm52 --measured`.

The models of a report are put on an imagined card of the same kind, and launch there what they
launched on the real one; each launch is found by its kernel, operand, grid and work. What the
projection does not know (another version's kernels, an unknown card) stands there alone.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from math import sqrt
from pathlib import Path
from statistics import median
from typing import Any, Final

from m40llm.bench.report_model import imagined_steps
from m40llm.progress import Progress, silent
from m40llm.sm52.cards import CardSpec, card_like
from m40llm.sm52.projection import ECC_SHARE, ZERO, Range
from m40llm.sm52.report import Row as Projected
from m40llm.sm52.report import projected

WHAT: Final = "measured, beside what is projected: docs/sm52.md"
_LANES: Final = 128  # of an SM, each a multiply-add a clock
_COPIED: Final = (
    *("step", "n_context", "kernel", "operand", "count", "grid", "n_threads", "n_bytes"),
    "n_flops",
)
_CEILINGS: Final = ("read_gb_per_s", "fp32_tflop_per_s")
Rows = list[dict[str, Any]]
At = tuple[str, int]
"""(step, tokens in the cache before it)."""


def card_of_report(report: dict[str, Any]) -> CardSpec | None:
    """The data sheet of the card of a report, with ECC as it was; None where there is none."""
    about = report["card"]
    card = card_like(about["name"], about["n_sms"], about["memory_bytes"] or 0)
    return card and replace(card, has_ecc=card.has_ecc and about["ecc"] != "off")


def beside(
    report: dict[str, Any], card: CardSpec | None, tool: Path | None, progress: Progress = silent
) -> dict[str, Any]:
    """The document. card: None for measurements alone; tool: as sm52.report.report has it."""
    rates: Rows = []
    kernels: Rows = []
    for model in report["models"]:
        steps = {} if card is None else _projected(model, card, tool, progress)
        rates += _rates(model, {at: _sum_of(rows) for at, rows in steps.items()})
        kernels += _kernels(model, steps)
    about = report["card"]
    return {
        "what": WHAT,
        "card": card and card.title,
        "measured_on": {key: about[key] for key in ("name", "code_for", "ecc", "driver")},
        "is_complete": report["is_complete"],
        "clock": report["clock"],
        "ceilings": _ceilings(report["ceilings"], card),
        "rates": rates,
        "kernels": kernels,
        "summary": _summary(kernels),
        "skipped": report["skipped"],
        "failed": report["failed"],
    }


def _projected(
    model: dict[str, Any], card: CardSpec, tool: Path | None, progress: Progress
) -> dict[At, list[Projected]]:
    """Rows of each step that was measured, in the order in which its launches come."""
    sizes = model["max_seq_len"], model["max_tokens"]
    imagined = imagined_steps(card, model["shape"], model["type"], *sizes)
    found = {}
    for measured in model["steps"]:
        name, n_context = measured["step"], measured["n_context"]
        is_decode = name == "decode"
        step = imagined.decode(n_context) if is_decode else imagined.prefill(measured["n_tokens"])
        rows = {row.launch: row for row in projected({name: step}, card, tool, progress)}
        found[name, n_context] = [rows[launch] for launch in step.launches]
    return found


def _sum_of(rows: Iterable[Projected]) -> Range:
    return sum((row.seconds for row in rows), ZERO)


def _rates(model: dict[str, Any], ranges: dict[At, Range]) -> Rows:
    """Of the steps themselves, of the card's own forms of decode, and of prefill as the host sees
    it; by: what made them."""
    measured = [(row["step"], row["n_context"], "launches", row) for row in model["steps"]]
    measured += [("decode", row["kv"], row["form"], row) for row in model["decode"]]
    if model["prefill"]:
        measured.append(("prefill", 0, "host", model["prefill"]))
    return [
        {
            "shape": model["shape"],
            "type": model["type"],
            "step": step,
            "n_context": n_context,
            "by": by,
            "n_tokens": 1 if step == "decode" else row["n_tokens"],
            "tokens_per_s": row["tokens_per_s"],
            **_compared(row["ms"], ranges.get((step, n_context)), 1e3, "ms"),
        }
        for step, n_context, by, row in measured
    ]


def _kernels(model: dict[str, Any], steps: dict[At, list[Projected]]) -> Rows:
    """A row for each kind of launch, with its projection where there is such a launch."""
    waiting: dict[Any, list[Projected]] = defaultdict(list)
    for (step, n_context), rows in steps.items():
        for one in rows:
            waiting[step, n_context, *_identity(one.as_json())].append(one)
    found = []
    for launch in model["launches"]:
        alike = waiting[launch["step"], launch["n_context"], *_identity(launch)]
        # Kernels of one name come in the same order.
        row: Projected | None = alike.pop(0) if alike else None
        found.append(
            {
                "shape": model["shape"],
                "type": model["type"],
                **{key: launch[key] for key in _COPIED},
                **_compared(launch["us"], row.projection.seconds if row else None, 1e6, "us"),
                "bound": row.projection.bound if row else None,
            }
        )
    return found


def _identity(launch: dict[str, Any]) -> tuple[Any, ...]:
    keys = ("kernel", "operand", "count", "n_threads", "n_bytes", "n_flops")
    return (*launch["grid"], *(launch[key] for key in keys))


def _compared(measured: float, seconds: Range | None, unit: float, name: str) -> dict[str, Any]:
    """The measurement, the range, whether it is inside, and its ratio to the geometric middle."""
    if seconds is None:
        return {name: measured, "projected": None, "is_inside": None, "ratio": None}
    low, high = seconds.low * unit, seconds.high * unit
    return {
        name: measured,
        "projected": [low, high],
        "is_inside": low <= measured <= high,
        "ratio": measured / sqrt(low * high),
    }


def _ceilings(measured: dict[str, Any], card: CardSpec | None) -> dict[str, Any]:
    """What the card reaches beside what its data sheet and the model let expect."""
    found = {key: {"measured": measured[key], "projected": None} for key in _CEILINGS}
    if card is not None:
        worst, best = card.read_shares
        worst *= ECC_SHARE if card.has_ecc else 1
        found["read_gb_per_s"]["projected"] = [card.peak * worst / 1e9, card.peak * best / 1e9]
        a_clock = 2 * _LANES * card.n_sms
        ends = (a_clock * mhz * 1e6 / 1e12 for mhz in (card.base_mhz, card.boost_mhz))
        found["fp32_tflop_per_s"]["projected"] = list(ends)
    return found


def _summary(kernels: Rows) -> Rows:
    """By kernel and step: how many kinds of launch are within their range, and how far off."""
    groups: dict[tuple[str, str], Rows] = defaultdict(list)
    for row in kernels:
        if row["ratio"] is not None:
            groups[row["step"], row["kernel"]].append(row)
    return [
        {
            "step": step,
            "kernel": kernel,
            "n_kinds": len(rows),
            "n_inside": sum(row["is_inside"] for row in rows),
            "median_ratio": median(row["ratio"] for row in rows),
            "least_ratio": min(row["ratio"] for row in rows),
            "most_ratio": max(row["ratio"] for row in rows),
        }
        for (step, kernel), rows in groups.items()
    ]
