"""What is projected of a model on a card, as one document: `m40llm sm52` prints it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from m40llm.gguf import GGUFFile
from m40llm.llm.cards import CardPlan, on_cards
from m40llm.model.arch import architecture_of
from m40llm.model.check_tensors import check_tensors
from m40llm.model.hparams import HParams
from m40llm.model.program import why_never
from m40llm.progress import Progress, silent
from m40llm.sm52.cards import CardSpec
from m40llm.sm52.code import Code, code_of
from m40llm.sm52.counting import Counted, counted
from m40llm.sm52.imagined import Launch
from m40llm.sm52.projection import GAP_S, ZERO, Projection, Range, project
from m40llm.sm52.steps import ImaginedModel, Step

WHAT: Final = "projected, not measured: docs/sm52.md"


@dataclass(frozen=True)
class Row:
    """One kind of launch in a step: how often it comes, its code, and what is projected of it."""

    step: str
    count: int
    launch: Launch
    code: Code
    counted: Counted | None
    projection: Projection

    @property
    def seconds(self) -> Range:
        """Of all of them."""
        return self.projection.seconds * self.count

    def as_json(self) -> dict[str, Any]:
        launch, code, found = self.launch, self.code, self.projection
        loop = code.listing.hot_loop if code.listing else None
        return {
            "step": self.step,
            "kernel": launch.kernel.name.removesuffix("_kernel"),
            "operand": launch.operand,
            "count": self.count,
            "grid": launch.grid,
            "n_threads": launch.n_threads,
            "registers": code.registers,
            "spill_bytes": code.spill_bytes,
            "shared_bytes": code.shared_bytes + launch.shared_bytes,
            "n_warps": found.occupancy.n_warps,
            "occupancy_limit": found.occupancy.limit,
            "n_instructions": len(code.listing.instructions) if code.listing else None,
            "loop_instructions": len(loop.body) if loop else None,
            "ffma_share": loop.ffma_share if loop else None,
            "sectors": self.counted.sectors if self.counted else None,
            "wavefronts": self.counted.wavefronts if self.counted else None,
            "n_bytes": launch.work.n_bytes,
            "n_flops": launch.work.n_flops,
            "us": _pair(found.seconds, 1e6),
            "bound": found.bound,
        }


def report(
    file: GGUFFile,
    card: CardSpec,
    *,
    n_context: int,
    n_prompt: int,
    tool: Path | None,
    count: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """The document. Where not all layers fit beside a useful context (llm/fit.py), the times are
    those of the layers that do; where none does, `decode` and `prefill` are None and there are no
    kernels.

    n_context  tokens in the cache where one is decoded; n_prompt: of a prompt; both are cut to
               what fits
    tool       the disassembler; None: times by memory alone
    count      have the emulator count each kernel's sectors and wavefronts
    """
    arch, hp = architecture_of(file), HParams.from_gguf(file)
    check_tensors(file, arch, hp)
    (plan,) = on_cards(file, hp, {card.title: card.free})
    document: dict[str, Any] = {
        "what": WHAT,
        "card": card.title,
        "n_layers": hp.n_layers,
        "n_card_layers": (n_card_layers := _card_layers(plan)),
        "fits": n_card_layers == hp.n_layers,
        "plan": str(plan.best),
        "max_seq_len": plan.best.max_seq_len,
        "has_persistent": not why_never(arch, hp, plan.best.kv_type),
        "decode": None,
        "prefill": None,
        "kernels": [],
    }
    if not n_card_layers:
        return document
    longest = plan.best.max_seq_len
    n_context, n_prompt = min(n_context, longest - 1), min(n_prompt, longest)
    imagined = ImaginedModel(card, file, arch, hp, plan.best)
    steps = {"decode": imagined.decode(n_context), "prefill": imagined.prefill(n_prompt)}
    rows = projected(steps, card, tool, progress, count=count)
    for name, context in (("decode", n_context), ("prefill", 0)):
        mine = [row for row in rows if row.step == name]
        document[name] = _summary(steps[name], context, mine, is_whole=document["fits"])
    document["kernels"] = [row.as_json() for row in rows]
    return document


def _card_layers(plan: CardPlan) -> int:
    last = plan.best.shares[-1]
    return len(last.part.layers) if last.device == plan.card else 0


def projected(
    steps: dict[str, Step],
    card: CardSpec,
    tool: Path | None,
    progress: Progress,
    *,
    count: bool = False,
) -> list[Row]:
    """A row for each kind of launch in the steps: what takes longest first, step by step."""
    kinds = [(name, *kind) for name, step in steps.items() for kind in step.launches.items()]
    rows = []
    for i, (name, launch, n) in enumerate(kinds):
        arch = "sm_{}{}".format(*card.capability)
        progress(f"compiling {launch.kernel.name} for {arch}", i / len(kinds))
        code = code_of(launch.kernel, launch.arg_types, card.capability, tool)
        found = counted(launch) if count else None
        rows.append(Row(name, n, launch, code, found, project(launch, code, card, found)))
    progress("compiling", 1.0)
    order = list(steps)
    return sorted(rows, key=lambda row: (order.index(row.step), -row.seconds.high))


def _summary(step: Step, n_context: int, rows: list[Row], *, is_whole: bool) -> dict[str, Any]:
    """Of one step: its launches one after another. Of a part of a model there is no rate."""
    total = sum((row.seconds for row in rows), ZERO)
    n_launches = sum(row.count for row in rows)
    by_bound: dict[str, float] = {}
    for row in rows:
        found = row.projection
        by_bound[found.bound] = by_bound.get(found.bound, 0.0) + row.seconds.low + row.seconds.high
    return {
        "n_tokens": step.n_tokens,
        "n_context": n_context,
        "n_launches": n_launches,
        "n_bytes": sum(row.count * row.launch.work.n_bytes for row in rows),
        "n_flops": sum(row.count * row.launch.work.n_flops for row in rows),
        "ms": _pair(total, 1e3),
        "gap_ms": _pair(Range(*GAP_S) * n_launches, 1e3),
        "tokens_per_s": [step.n_tokens / s for s in (total.high, total.low)] if is_whole else None,
        "bound": max(by_bound, key=lambda bound: by_bound[bound]),
    }


def _pair(seconds: Range, unit: float) -> list[float]:
    return [seconds.low * unit, seconds.high * unit]
