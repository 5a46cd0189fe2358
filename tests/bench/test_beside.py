"""Measurements beside projections, of cards that nobody has."""

import copy
from dataclasses import replace
from math import sqrt
from typing import Any

import pytest

from m40llm.bench.beside import beside, card_of_report
from m40llm.sm52 import report as projections
from m40llm.sm52.cards import CARDS
from m40llm.sm52.code import Code
from m40llm.sm52.imagined import Launch
from m40llm.sm52.projection import project
from m40llm.testing.fake_report import N_CONTEXT, fake_report

CARD = CARDS["m40-24"]
CODE = Code(64, 0, 1024, None)


@pytest.fixture(autouse=True)
def _one_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """All kernels have one: to compile them takes a minute."""
    monkeypatch.setattr(projections, "code_of", lambda *args: CODE)


def middle(launch: Launch) -> float:
    seconds = project(launch, CODE, CARD).seconds
    return 1e6 * sqrt(seconds.low * seconds.high)


def test_in_the_middle_of_the_range() -> None:
    found = beside(fake_report(CARD, middle), CARD, None)
    assert found["card"] == "Tesla M40 24 GB"
    assert len(found["kernels"]) == 25
    for row in found["kernels"]:
        low, high = row["projected"]
        assert low < row["us"] < high
        assert row["is_inside"]
        assert row["ratio"] == pytest.approx(1)
    assert sum(row["n_kinds"] for row in found["summary"]) == 25
    for row in found["summary"]:
        assert row["n_inside"] == row["n_kinds"]
        ratios = (row[f"{name}_ratio"] for name in ("median", "least", "most"))
        assert list(ratios) == pytest.approx([1, 1, 1])


def test_beyond_the_range() -> None:
    """A kernel that takes ten times as long; the others stay where they are."""
    found = beside(
        fake_report(CARD, lambda a: middle(a) * (10 if a.kernel.name == "gemv" else 1)), CARD, None
    )
    for row in found["kernels"]:
        is_gemv = row["kernel"] == "gemv"
        assert row["ratio"] == pytest.approx(10 if is_gemv else 1)
        assert row["is_inside"] != is_gemv
    by_kernel = {(row["step"], row["kernel"]): row for row in found["summary"]}
    assert by_kernel["decode", "gemv"]["n_inside"] == 0
    assert by_kernel["prefill", "gemm"]["n_inside"] == by_kernel["prefill", "gemm"]["n_kinds"]


def test_rates() -> None:
    """The steps' launches, the card's own form of decode, and prefill as the host sees it."""
    found = beside(fake_report(CARD, middle), CARD, None)["rates"]
    assert [(row["step"], row["n_context"], row["by"], row["n_tokens"]) for row in found] == [
        *(("decode", N_CONTEXT, "launches", 1), ("prefill", 0, "launches", 16)),
        *(("decode", N_CONTEXT, "graph", 1), ("prefill", 0, "host", 16)),
    ]
    steps, own = found[0], found[2]
    assert steps["is_inside"]
    assert steps["projected"] == own["projected"]
    low, high = own["projected"]
    assert own["ratio"] == pytest.approx(0.5 / sqrt(low * high))


def test_kernels_of_one_name_keep_their_order() -> None:
    """attn_q and attn_output are one product but for what is added: each meets its own."""
    found = beside(fake_report(CARD, middle), CARD, None)["kernels"]
    alike = [r for r in found if r["step"] == "decode" and r["operand"] == "Q8_0 128 x 128"]
    assert [row["ratio"] for row in alike] == pytest.approx([1, 1])


def test_what_is_not_known_stands_alone() -> None:
    report = fake_report(CARD)
    report["models"][0]["launches"][2]["kernel"] = "of_tomorrow"
    del report["models"][0]["launches"][3]
    report["models"][0]["decode"][0]["kv"] = 7  # no such step
    found = beside(report, CARD, None)
    row = found["kernels"][2]
    assert (row["kernel"], row["us"]) == ("of_tomorrow", 7.0)
    assert [row[key] for key in ("projected", "is_inside", "ratio", "bound")] == [None] * 4
    assert found["rates"][2]["projected"] is None
    assert sum(row["n_kinds"] for row in found["summary"]) == 23


def test_without_a_data_sheet() -> None:
    report = fake_report(CARD, name="Tesla K80")
    assert card_of_report(report) is None
    found = beside(report, None, None)
    assert found["card"] is None
    assert found["measured_on"]["name"] == "Tesla K80"
    assert {row["us"] for row in found["kernels"]} == {7.0}
    assert all(row["projected"] is None for row in (*found["kernels"], *found["rates"]))
    assert found["summary"] == []
    assert found["ceilings"]["read_gb_per_s"] == {"measured": 200.5, "projected": None}


def test_ceilings() -> None:
    found = beside(fake_report(CARD), CARD, None)["ceilings"]
    assert found["read_gb_per_s"]["projected"] == pytest.approx([161.5, 245.14], rel=1e-3)
    assert found["fp32_tflop_per_s"]["projected"] == pytest.approx([5.824, 6.832], rel=1e-3)
    without_ecc = beside(fake_report(CARD), replace(CARD, has_ecc=False), None)["ceilings"]
    assert without_ecc["read_gb_per_s"]["projected"] == pytest.approx([201.9, 245.14], rel=1e-3)


@pytest.mark.parametrize(
    ("name", "n_sms", "memory", "expected"),
    [
        ("Tesla M40", 24, 11.2, "m40-12"),
        ("Tesla M40", 24, 22.4, "m40-24"),
        ("Tesla M40 24GB", 24, 22.9, "m40-24"),
        ("NVIDIA Tesla M40", 24, 11.9, "m40-12"),
        ("NVIDIA GeForce GTX TITAN X", 24, 11.9, "titan-x"),
        ("Tesla P40", 30, 22.9, "p40"),
        ("NVIDIA H100 80GB HBM3", 132, 79.2, "h100"),
        ("NVIDIA H100 PCIe", 114, 79.2, None),  # another chip than the data sheet's
        ("NVIDIA H200", 132, 139.8, "h200"),
        ("NVIDIA TITAN X (Pascal)", 28, 11.9, None),
        ("emulator", 2, 0.0, None),
    ],
)
def test_which_card_it_is(name: str, n_sms: int, memory: float, expected: str | None) -> None:
    report = copy.deepcopy(fake_report(CARD))
    about: dict[str, Any] = report["card"]
    about |= {"name": name, "n_sms": n_sms, "memory_bytes": int(memory * 2**30)}
    card = card_of_report(report)
    assert (card and card.name) == expected


@pytest.mark.parametrize(("ecc", "has_ecc"), [("on", True), ("off", False), ("unknown", True)])
def test_ecc_as_it_was(ecc: str, has_ecc: bool) -> None:
    report = fake_report(CARD)
    report["card"]["ecc"] = ecc
    card = card_of_report(report)
    assert card is not None
    assert card.has_ecc == has_ecc
