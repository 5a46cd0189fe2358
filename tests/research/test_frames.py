"""Findings as xarray's and pandas's, and what is said where these are missing."""

import sys

import numpy as np
import pytest

from m40llm.errors import RequestError
from m40llm.research import LLM

IDS = [5, 9, 200, 31, 77]


def test_a_trace_in_xarray(llm: LLM) -> None:
    keep = ("blk.0.z", "blk.0.k", "blk.1.pattern", "blk.1.act", "norm", "logits")
    with llm.trace(IDS, keep=keep).keep("blk.2.resid_post", at=[-1, 1]) as t:
        pass
    found = t.to_xarray()
    np.testing.assert_array_equal(found["blk.0.z"], t["blk.0.z"])
    assert found["blk.0.z"].sel(position=2, head=1).shape == (16,)
    assert found["blk.0.k"].dims == ("position", "kv_head", "element")
    assert found["blk.1.pattern"].dims == ("position", "head", "looked_at")
    assert found["logits"].sel(position=4).argmax("token") == t["logits"][4].argmax()
    late = found["blk.2.resid_post"]
    np.testing.assert_array_equal(late.sel(position=[1, 4]), t["blk.2.resid_post"])
    assert np.isnan(late.sel(position=0)).all()
    with llm.trace(IDS, keep=(*keep, "blk.2.resid_post")) as whole:
        pass
    np.testing.assert_array_equal(late.sel(position=4), whole["blk.2.resid_post"][4])


def test_lens_and_attribution_in_pandas(llm: LLM) -> None:
    lens = llm.lens(IDS, top=2)
    found = lens.to_pandas()
    assert len(found) == 4 * len(IDS) * 2
    last = found[(found.site == "blk.2.resid_post") & (found.position == 4)]
    assert last.id.tolist() == lens.top_ids[-1, -1].tolist()
    shares = llm.attribution(IDS, 17)
    assert shares.to_pandas().value.sum() == pytest.approx(shares.values.sum())


def test_what_is_said_without_them(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(RequestError, match=r'pandas is not installed; try: pip install "m40llm'):
        llm.attribution(IDS, 17).to_pandas()
