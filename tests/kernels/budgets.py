"""What each kernel may take on sm_52: budgets.csv, and what is compared with it.

    python tests/kernels/budgets.py --write [NAME ...]   # accept what the kernels take now

A budget is what the kernel took when it was last accepted. To take less is no failure, and becomes
the budget when it is written. What was compiled before in the same process has a little to say in
the order of instructions (gemv-IQ4_NL-1x1: 141 of them in one run, 143 in another), hence some
slack where the tools' versions are those of the table; with others more.
"""

import argparse
import csv
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Final

from all_signatures import SIGNATURES
from signature import Signature

from m40llm.kernels.contract import ceil_div
from m40llm.sm52.assembly import Assembled, assemble
from m40llm.sm52.disassembler import disassemble, fetch_disassembler, find_disassembler
from m40llm.sm52.sass import parse

TABLE: Final = Path(__file__).with_suffix(".csv")
ACCEPT: Final = "to accept it: python tests/kernels/budgets.py --write"
TOOLS: Final = ", ".join(
    f"{name} {version(name)}" for name in ("nvidia-cuda-nvcc-cu12", "numba-cuda", "numba")
)
REGISTER_UNIT: Final = 8  # a card gives a thread's registers out by eights (256 a warp)


@dataclass(frozen=True)
class Slack:
    """By how much a figure may miss its budget: registers a thread, instructions of a loop and
    parts of its length, and a share beyond what the same FFMAs have in the longest such loop."""

    registers: int
    instructions: int
    length: float
    share: float

    def longest(self, budget: "Figures") -> int:
        """Of a hot loop, in instructions."""
        n = budget.loop_instructions or 0
        return n + max(self.instructions, int(n * self.length))

    def least_share(self, budget: "Figures") -> float:
        """Of FFMAs; the table's are rounded to a thousandth."""
        n = budget.loop_instructions or 0
        return (budget.ffma_share or 0.0) * n / max(self.longest(budget), 1) - self.share - 0.001


SAME_TOOLS: Final = Slack(2, 2, 0.03, 0.0)
OTHER_TOOLS: Final = Slack(REGISTER_UNIT, 2, 0.10, 0.05)


@dataclass(frozen=True)
class Figures:
    """Of one kernel. The hot loop is that of m40llm/sm52/sass.py.

    shared_bytes       static and dynamic ones
    loop_instructions  0 where there is no loop; None where no disassembler has said
    ffma_share         of the hot loop's instructions
    """

    registers: int
    shared_bytes: int
    loop_instructions: int | None = None
    ffma_share: float | None = None


def figures_of(signature: Signature, assembled: Assembled, tool: Path | None) -> Figures:
    """tool: the disassembler; without one nothing is known of the loop."""
    taken = Figures(assembled.registers, assembled.shared_bytes + signature.shared_bytes)
    if tool is None:
        return taken
    loop = parse(disassemble(assembled.cubin, tool)).hot_loop
    if loop is None:
        return replace(taken, loop_instructions=0, ffma_share=0.0)
    share = round(loop.ffma_share, 3)
    return replace(taken, loop_instructions=len(loop.body), ffma_share=share)


def regressions(name: str, budget: Figures, got: Figures, slack: Slack) -> list[str]:
    """What misses its budget, in words, with how to accept it."""
    missed = []
    if got.registers > _given(budget.registers) + slack.registers:
        missed.append("registers")
    if got.shared_bytes > budget.shared_bytes:
        missed.append("shared_bytes")
    if got.loop_instructions is not None:
        has_loop, had_loop = got.loop_instructions > 0, budget.loop_instructions > 0
        if has_loop != had_loop or got.loop_instructions > slack.longest(budget):
            missed.append("loop_instructions")
        if got.ffma_share < slack.least_share(budget):
            missed.append("ffma_share")
    budgets, taken = asdict(budget), asdict(got)
    return [
        f"{name}: {figure}: budget {budgets[figure]}, got {taken[figure]}; {ACCEPT} '{name}'"
        for figure in missed
    ]


def _given(registers: int) -> int:
    return ceil_div(registers, REGISTER_UNIT) * REGISTER_UNIT


def read_budgets(path: Path = TABLE) -> tuple[str, dict[str, Figures]]:
    """(versions that the table was made with, figures by signature)."""
    with path.open(newline="", encoding="utf-8") as file:
        tools = file.readline().removeprefix("# ").strip()
        rows = {
            row["signature"]: Figures(
                registers=int(row["registers"]),
                shared_bytes=int(row["shared_bytes"]),
                loop_instructions=int(row["loop_instructions"]),
                ffma_share=float(row["ffma_share"]),
            )
            for row in csv.DictReader(file)
        }
    return tools, rows


def slack_of(tools: str) -> Slack:
    """Where a table was made with these versions."""
    return SAME_TOOLS if tools == TOOLS else OTHER_TOOLS


def write_budgets(names: Iterable[str] = ()) -> None:
    """Compile these signatures, or all, and put what they take into the table.

    ValueError for a name that is none, and for some names where the table is of other versions.
    """
    wanted = set(names) or {str(signature) for signature in SIGNATURES}
    if unknown := wanted - {str(signature) for signature in SIGNATURES}:
        raise ValueError(f"signature: there is none named {', '.join(map(repr, sorted(unknown)))}")
    kept = {}
    if len(wanted) < len(SIGNATURES):
        tools, kept = read_budgets()
        if tools != TOOLS:
            raise ValueError(f"the table is of {tools}, and here is {TOOLS}: write all of it")
    indices = [i for i, signature in enumerate(SIGNATURES) if str(signature) in wanted]
    tool = find_disassembler() or fetch_disassembler()
    with ProcessPoolExecutor() as pool:
        made = dict(pool.map(_measured, indices, [tool] * len(indices)))
    figures = {**kept, **made}
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        file.write(f"# {TOOLS}\n")
        columns = csv.writer(file, lineterminator="\n")
        columns.writerow(["signature", *Figures.__dataclass_fields__])
        for name in map(str, SIGNATURES):
            if name in figures:  # a new one may not be wanted yet
                columns.writerow([name, *asdict(figures[name]).values()])


def _measured(index: int, tool: Path) -> tuple[str, Figures]:
    signature = SIGNATURES[index]
    assembled = assemble(signature.kernel, signature.arg_types)
    return str(signature), figures_of(signature, assembled, tool)


def main() -> int:
    parser = argparse.ArgumentParser(description="Budgets of kernels on sm_52.")
    parser.add_argument("--write", nargs="*", metavar="NAME", required=True)
    try:
        write_budgets(parser.parse_args().write)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
