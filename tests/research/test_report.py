"""The report and the pictures: whole, safe whatever the text says, and refused in time."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from m40llm.errors import RequestError
from m40llm.research import LLM, plots
from m40llm.research.report import MOST_ATTENTION, report

IDS = [5, 9, 200, 31, 77, 8, 14, 3]


def test_a_report_is_whole_and_fetches_nothing(llm: LLM) -> None:
    told: list[tuple[str, float]] = []
    page = report(llm, IDS, progress=lambda stage, fraction: told.append((stage, fraction)))
    assert told[-1] == ("attention", 1.0)
    for heading in ("What each token costs", "Logit lens", "Who has said", "Attention"):
        assert heading in page
    assert not re.search(r"(src|href)=|https?://|@import|url\(", page)
    n_sites = llm.hparams.n_layers + 1
    assert page.count("<td style") == n_sites * len(IDS)
    assert "2.0 %" not in page or "%" in page


def test_a_text_is_never_markup(llm: LLM) -> None:
    page = report(llm, '</script><b onclick="x">&')
    assert page.count("</script>") == 1
    assert "<b " not in page
    assert 'onclick="' not in page


def test_a_long_text_has_no_attention(llm: LLM) -> None:
    page = report(llm, [7] * (MOST_ATTENTION + 1))
    assert "<script>" not in page
    assert "Logit lens" in page


def test_one_token(llm: LLM) -> None:
    assert "0.000 on average" in report(llm, [3])


def test_pictures(llm: LLM, tmp_path: Path) -> None:
    with llm.trace(IDS, keep="blk.0.pattern") as t:
        pass
    tokens = ["$x$", "a b", "\n", *"cdefg"]
    found = llm.patch(IDS, [*IDS[:-1], 90], "blk.*.resid_post", 17, 40)
    figures = {
        "attention": plots.attention_map(t["blk.0.pattern"][:, 1], tokens, "a head"),
        "lens": plots.lens_grid(llm.lens(IDS)),
        "patching": plots.patching_grid(found),
        "nll": plots.nll_strip(np.arange(7.0), tokens),
    }
    for name, figure in figures.items():
        png, svg = plots.save(figure, tmp_path / f"{name}.png")
        assert png.read_bytes()[:4] == b"\x89PNG"
        assert svg.read_text(encoding="utf-8").rstrip().endswith("</svg>")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plots.attention_map(np.eye(3), ["a", "b"]), "tokens: expected 3, got 2"),
        (lambda: plots.nll_strip(np.ones(70), ["a"] * 71), "tokens: 70 are too many for"),
    ],
)
def test_what_cannot_be_drawn(call: Callable[[], object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        call()
