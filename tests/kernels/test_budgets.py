"""A kernel that takes more than it did is named, with what it takes more of."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import budgets
import pytest
from all_signatures import SIGNATURES
from budgets import (
    OTHER_TOOLS,
    SAME_TOOLS,
    TABLE,
    TOOLS,
    Figures,
    figures_of,
    read_budgets,
    regressions,
    slack_of,
    write_budgets,
)
from numba import cuda, float32

from m40llm.kernels import swiglu
from m40llm.sm52.assembly import assemble

BUDGET = Figures(registers=60, shared_bytes=1024, loop_instructions=100, ffma_share=0.5)


def missed(slack: Any = SAME_TOOLS, **taken: Any) -> list[str]:
    """The figures that a kernel misses which takes these, and else its budget."""
    told = regressions("gemv-Q4_K", BUDGET, replace(BUDGET, **taken), slack)
    return [line.split(": ")[1] for line in told]


def test_every_signature_has_a_budget() -> None:
    """And no budget is of a kernel that is gone; `budgets.py --write` does both."""
    assert list(read_budgets()[1]) == [str(signature) for signature in SIGNATURES]


def test_there_is_a_disassembler(disassembler: Path | None, offline_reason: Any) -> None:
    """Without one loops are not compared: this says so, once."""
    if disassembler is None:
        pytest.skip(f"no nvdisasm, so hot loops are not compared: {offline_reason()}")


def test_what_is_said() -> None:
    (told,) = regressions("gemv-Q4_K", BUDGET, replace(BUDGET, loop_instructions=104), SAME_TOOLS)
    assert told == (
        "gemv-Q4_K: loop_instructions: budget 100, got 104; "
        "to accept it: python tests/kernels/budgets.py --write 'gemv-Q4_K'"
    )


def test_each_figure() -> None:
    assert missed() == []
    assert missed(registers=64) == [], "the card gives as many out for 60"
    assert missed(registers=66) == [], "what is compiled before may move some"
    assert missed(registers=67) == ["registers"]
    assert missed(shared_bytes=1025) == ["shared_bytes"]
    assert missed(loop_instructions=103, ffma_share=0.485) == []
    assert missed(ffma_share=0.484) == ["ffma_share"]
    assert missed(loop_instructions=130, ffma_share=0.4) == ["loop_instructions", "ffma_share"]


def test_a_short_loop_may_have_two_more() -> None:
    short = replace(BUDGET, loop_instructions=20)
    assert regressions("gemv", short, replace(short, loop_instructions=22), SAME_TOOLS) == []
    (told,) = regressions("gemv", short, replace(short, loop_instructions=23), SAME_TOOLS)
    assert "loop_instructions: budget 20, got 23" in told


def test_less_is_no_failure() -> None:
    assert missed(registers=8, shared_bytes=0, loop_instructions=1, ffma_share=1.0) == []


def test_a_loop_that_is_gone() -> None:
    """Unrolled to its end, or found elsewhere: whoever did it may say that it is meant."""
    assert missed(loop_instructions=0, ffma_share=0.0) == ["loop_instructions", "ffma_share"]


def test_without_a_disassembler_there_are_registers_and_shared_memory() -> None:
    unknown = {"loop_instructions": None, "ffma_share": None}
    assert missed(**unknown) == []
    assert missed(registers=128, **unknown) == ["registers"]


def test_other_versions_of_the_tools_have_some_slack() -> None:
    assert slack_of(TOOLS) == SAME_TOOLS
    assert slack_of("numba 0.1") == OTHER_TOOLS
    assert missed(OTHER_TOOLS, registers=72, loop_instructions=110, ffma_share=0.41) == []
    over = {"registers": 73, "loop_instructions": 111, "ffma_share": 0.40}
    assert missed(OTHER_TOOLS, **over) == list(over)


def test_a_division_in_a_loop_is_found(
    monkeypatch: pytest.MonkeyPatch, disassembler: Path | None
) -> None:
    """Planted in a kernel of ours: silu divides twice."""

    @cuda.jit(device=True)
    def slow_silu(g: Any) -> Any:
        return silu(g) / (float32(2.0) + g * g)

    silu = swiglu.silu
    (ours,) = (one for one in SIGNATURES if str(one) == "gated_activation-silu")
    monkeypatch.setitem(swiglu._ACTIVATIONS, "silu", slow_silu)
    planted = replace(ours, kernel=swiglu._compile.__wrapped__("silu"))
    tools, table = read_budgets()
    got = figures_of(planted, assemble(planted.kernel, planted.arg_types), disassembler)
    found = regressions(str(ours), table[str(ours)], got, slack_of(tools))
    wanted = "registers" if disassembler is None else "loop_instructions"
    assert f"gated_activation-silu: {wanted}: budget " in "\n".join(found)


def test_accepting_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others stay as they are."""
    monkeypatch.setattr(budgets, "TABLE", tmp_path / "table.csv")
    monkeypatch.setattr(budgets, "find_disassembler", lambda: Path("nvdisasm"))
    monkeypatch.setattr(budgets, "_measured", lambda index, tool: (names[index], BUDGET))
    monkeypatch.setattr(budgets, "ProcessPoolExecutor", InThisProcess)
    names = [str(signature) for signature in SIGNATURES]
    lines = TABLE.read_text().splitlines()
    lines[0] = f"# {TOOLS}"
    budgets.TABLE.write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(budgets, "read_budgets", lambda: read_budgets(budgets.TABLE))
    write_budgets([names[3]])
    after = budgets.TABLE.read_text().splitlines()
    assert after[5] == f"{names[3]},60,1024,100,0.5"
    assert [*after[:5], *after[6:]] == [*lines[:5], *lines[6:]]


class InThisProcess:
    """A pool of one."""

    def __enter__(self) -> "InThisProcess":
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing was started."""

    map = staticmethod(map)


def test_what_is_not_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that are none, and some rows of a table that was made with other versions."""
    before = TABLE.read_bytes()
    with pytest.raises(ValueError, match="signature: there is none named 'gemw'"):
        write_budgets(["gemw"])
    monkeypatch.setattr(budgets, "TOOLS", "numba 99")
    with pytest.raises(ValueError, match="and here is numba 99: write all of it"):
        write_budgets(["argmax_kernel"])
    assert TABLE.read_bytes() == before
