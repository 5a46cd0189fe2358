"""The model of docs/sm52.md, on launches whose times are reckoned by hand."""

from dataclasses import replace
from typing import Any

import pytest

from m40llm.kernels.contract import Kernel
from m40llm.sm52.cards import CARDS
from m40llm.sm52.code import Code
from m40llm.sm52.counting import Counted
from m40llm.sm52.imagined import Launch
from m40llm.sm52.projection import Projection, project
from m40llm.sm52.sass import Listing, parse
from m40llm.sm52.work import Work

M40 = CARDS["m40-24"]
KERNEL = Kernel(lambda: None)

LOOP = """
        /*0008*/                   MOV R0, RZ ;
.L_x_0:
        /*0010*/                   LDG.E.128 R4, [R2] ;
        {ffmas}
        /*0100*/              @!P0 BRA `(.L_x_0) ;
        /*0108*/                   EXIT ;
"""


def listing(n_ffma: int) -> Listing:
    return parse(LOOP.replace("{ffmas}", "\n".join(["/*0018*/ FFMA R0, R4, R4, R0 ;"] * n_ffma)))


def projected(
    work: Work, code: Listing | None, n_blocks: int, card: Any = M40, registers: int = 32
) -> Projection:
    launch = Launch(KERNEL, (), (n_blocks,), 256, 0, work)
    return project(launch, Code(registers, 0, 0, code), card)


def test_bound_by_memory() -> None:
    """288.4 MB: 1 ms of the peak; 85 % of it at best, 56 % with ECC at worst, 70 % without."""
    work = Work(288_400_000)
    found = projected(work, listing(0), 24 * 8)
    assert found.bound == "memory"
    assert found.parts["memory"].low * 1e3 == pytest.approx(1 / 0.85)
    assert found.parts["memory"].high * 1e3 == pytest.approx(1 / 0.56)
    assert found.seconds.low * 1e3 == pytest.approx(1 / 0.85 + 0.5e-3)  # and the gap
    without = projected(work, listing(0), 24 * 8, replace(M40, has_ecc=False))
    assert without.parts["memory"].high * 1e3 == pytest.approx(1 / 0.70)


def test_bound_by_issue() -> None:
    """At best the FFMAs alone: FLOPs at the card's peak. At worst all instructions, and stalls."""
    n_flops = 2 * 32 * 62 * 10_000_000
    found = projected(Work(0, n_flops), listing(62), 24 * 8)
    assert found.bound == "issue"
    peak = 2 * 128 * 24 * 1112e6
    assert found.parts["issue"].low == pytest.approx(n_flops / peak)
    at_worst = 10_000_000 * 64 / (24 * 4) * 4 / 3 / 948e6
    assert found.parts["issue"].high == pytest.approx(at_worst, rel=1e-3)  # what is outside is more


def test_blocks_that_do_not_fill_the_card() -> None:
    """One block of 24 SMs takes 24 times as long; the last of 2.5 waves as long as the others."""
    work, code = Work(0, 2 * 32 * 62 * 1_000_000), listing(62)
    whole = projected(work, code, 24 * 8)
    assert whole.occupancy.n_blocks == 8
    one = projected(work, code, 1).parts["issue"]
    assert one.low == pytest.approx(24 * whole.parts["issue"].low)
    most = projected(work, code, 24 * 8 * 5 // 2).parts["issue"]
    assert most.low == pytest.approx(whole.parts["issue"].low)
    assert most.high == pytest.approx(whole.parts["issue"].high * 3 / 2.5, rel=1e-3)


def test_blocks_of_unequal_parts() -> None:
    """In one wave the largest decides; in three it is done while others have their turn."""
    code, n_flops = listing(62), 2 * 32 * 62 * 1_000_000
    for n_blocks, longer in ((24 * 8, 2.0), (24 * 8 * 3, 1.0)):
        even = projected(Work(0, n_flops), code, n_blocks).parts["issue"]
        uneven = projected(Work(0, n_flops, largest=2.0), code, n_blocks).parts["issue"]
        assert uneven.low == even.low
        assert uneven.high == pytest.approx(longer * even.high)


def test_bound_by_latency() -> None:
    """A warp that loads in every round and has nothing else to do waits for each load, and for
    each of two instructions that needs the one before."""
    n_rounds = 100
    n_bytes = 8 * 32 * 16 * n_rounds  # of 8 warps
    found = projected(Work(n_bytes), listing(0), 1)
    assert found.bound == "latency"
    clocks = 400 * (n_rounds + 1) + 3 * (2 * n_rounds + 2)
    assert found.parts["latency"].high == pytest.approx(clocks / 948e6)
    assert found.parts["latency"].low == pytest.approx(400 / 1112e6)


def test_sectors_that_were_counted() -> None:
    """A load of 16 bytes a lane whose lanes lie apart: 32 sectors, 8 rounds instead of 1 to 4."""
    launch = Launch(KERNEL, (), (24 * 8,), 256, 0, Work(10**9))
    code = Code(32, 0, 0, listing(0))
    plain, apart, close = (
        project(launch, code, M40, found).parts
        for found in (None, Counted(32.0, 0.0), Counted(2.0, 0.0))
    )
    assert apart["issue"].low == pytest.approx(8 * plain["issue"].low)
    assert apart["issue"].high == pytest.approx(2 * plain["issue"].high, rel=1e-3)
    assert close["issue"].low == plain["issue"].low
    assert apart["memory"] == plain["memory"]


def test_without_a_listing_only_the_memory_counts() -> None:
    found = projected(Work(1_000_000, 10**12), None, 24)
    assert list(found.parts) == ["memory"]
    assert found.bound == "memory"


def test_code_without_a_loop_is_issued_once() -> None:
    straight = parse("/*0008*/ MOV R0, RZ ;\n/*0010*/ EXIT ;")
    found = projected(Work(0), straight, 24 * 8)
    slots = 24 * 8 * 8 * 2
    assert found.parts["issue"].high == pytest.approx(slots / 96 * 4 / 3 / 948e6)
    assert found.parts["issue"].low == 0
