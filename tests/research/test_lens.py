"""Lens, attribution, steering, patching and measures: against what they must sum and come to."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m40llm import SamplingParams
from m40llm.errors import RequestError
from m40llm.fuzz.bounds import gamma
from m40llm.research import LLM, SteeringVector, entropy, logprobs, nll
from m40llm.research.lens import attribution_sites

IDS = [5, 9, 200, 31, 77, 8, 14, 3]
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"arch": "qwen2"},
    "olmo2": {"arch": "olmo2"},
    "granite": {
        "arch": "granite",
        "metadata": {"granite.residual_scale": 0.5, "granite.logit_scale": 2.0},
    },
    "gemma2": {"arch": "gemma2", "metadata": {"gemma2.final_logit_softcapping": 6.0}},
    "mixtral": {"arch": "mixtral"},
}


def test_the_last_layer_says_what_the_model_says(llm: LLM) -> None:
    logits = llm.logits(IDS)
    lens = llm.lens(IDS, top=3)
    assert lens.sites == ["embd", "blk.0.resid_post", "blk.1.resid_post", "blk.2.resid_post"]
    assert lens.top_ids.shape == (4, len(IDS), 3)
    np.testing.assert_array_equal(lens.top_ids[-1, :, 0], logits.argmax(axis=1))
    # One norm and one product more or less at once: rounding of sums of n_embd products.
    np.testing.assert_allclose(lens.next_logprobs[-1, :-1], -nll(logits, IDS), atol=1e-5)
    np.testing.assert_allclose(lens.entropy[-1], entropy(logits), atol=1e-5)
    assert np.isnan(lens.next_logprobs[:, -1]).all()
    one = llm.lens(IDS, at=-2, top=3)
    np.testing.assert_array_equal(one.top_ids[:, 0], lens.top_ids[:, -2])
    assert one.positions.tolist() == [6]
    two = llm.lens(IDS, at=[5, 2], top=3)
    assert two.positions.tolist() == [2, 5]
    np.testing.assert_array_equal(two.top_ids, lens.top_ids[:, [2, 5]])


def rounding_of(llm: LLM, tokens: list[int], heads: bool) -> float:
    """How far the sum of shares may stray: each is a product of n_embd terms in FP32, and so is the
    logit, of a stream that was summed up part by part."""
    model, n_layers = llm.transformer, llm.hparams.n_layers
    with llm.trace(IDS, keep=attribution_sites(n_layers, heads), at=-1) as t:
        pass
    parts = [t[site][0] for site in t.kept if not site.endswith(("z", "resid_post", "norm"))]
    if heads:
        for layer in range(n_layers):
            parts += [*model.head_outputs(layer, t[f"blk.{layer}.z"][0])]
    stream = t[f"blk.{n_layers - 1}.resid_post"][0].astype(np.float64)
    size = np.abs(parts).sum(axis=0) * np.abs(model.norm_weight()) / np.sqrt(np.mean(stream**2))
    columns = model.unembed(np.eye(stream.size, dtype=np.float32), is_normed=True, is_capped=False)
    return gamma(stream.size + len(parts) + 8) * float(
        size @ np.abs(columns[:, tokens]).sum(axis=1)
    )


@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_shares_sum_to_the_logit(name: str, heads: bool, loaded: Callable[..., LLM]) -> None:
    llm = loaded(**MODELS[name])
    found = llm.attribution(IDS, 17, 40, heads=heads)
    assert len(found.parts) == len(found.values) == len(set(found.parts))
    bound = rounding_of(llm, [17, 40], heads)
    assert abs(found.values.sum() - found.logit) <= bound
    raw = llm.logits(IDS)[-1].astype(np.float64)
    cap = MODELS[name].get("metadata", {}).get("gemma2.final_logit_softcapping")
    if cap:  # whose inverse makes errors of FP32 larger, by its slope
        bound += 4 * 2.0**-24 * cap / (1 - (raw[[17, 40]] / cap).max() ** 2)
        raw = cap * np.arctanh(raw / cap)
    assert abs(found.logit - (raw[17] - raw[40])) <= bound
    alone = llm.attribution(IDS, 17, heads=heads)
    assert abs(alone.logit - raw[17]) <= bound


def test_steering(llm: LLM, tmp_path: Path) -> None:
    ours, theirs = [IDS, [3, *IDS]], [[7, 1, 9], [8, 8]]
    vector = llm.steering_vector("blk.1.resid_post", ours, theirs)
    rows = []
    for prompts in (ours, theirs):
        with llm.trace(prompts, keep="blk.1.resid_post", at=-1) as t:
            pass
        rows.append(np.mean([t["blk.1.resid_post", n][0] for n in range(2)], axis=0))
    np.testing.assert_allclose(vector.values, rows[0] - rows[1], atol=1e-6)
    vector.save(tmp_path / "v.npz")
    again = SteeringVector.load(tmp_path / "v.npz")
    assert again.site == vector.site
    np.testing.assert_array_equal(again.values, vector.values)
    greedy = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    plain = llm.generate(IDS, greedy).ids
    with llm.edited() as edits:
        edits.add(again.site, 20 * again.values)
        assert llm.generate(IDS, greedy).ids != plain


def test_what_is_no_steering_vector(llm: LLM, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"no archive")
    np.savez(tmp_path / "b.npz", values=np.zeros(3, np.float32))
    np.savez(tmp_path / "c.npz", site=np.array("embd"), values=np.array([np.nan], np.float32))
    for name in ("a", "b.npz", "c.npz"):
        with pytest.raises(RequestError, match=name):
            SteeringVector.load(tmp_path / name)
    with pytest.raises(RequestError, match="prompts: expected a list of them"):
        llm.steering_vector("embd", IDS, [IDS])  # type: ignore[arg-type]


def test_patching(llm: LLM) -> None:
    clean, corrupted = IDS, [*IDS[:3], 90, *IDS[4:]]
    told: list[float] = []
    found = llm.patch(
        *(clean, corrupted, "blk.*.resid_post", 17, 40),
        progress=lambda _, fraction: told.append(fraction),
    )
    assert found.effects.shape == (3, len(IDS))
    assert found.effects[:, :3] == pytest.approx(0, abs=1e-4)  # the prompts are still the same
    assert found.effects[-1, -1] == pytest.approx(1, abs=1e-4)  # all that the logits are made of
    assert found.effects[-1, :-1] == pytest.approx(0, abs=1e-4)
    assert told[-1] == 1
    logits = llm.logits(clean)[-1]
    assert found.clean == pytest.approx(float(logits[17] - logits[40]), abs=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda llm: llm.lens(IDS, top=0), "top: expected 1 to"),
        (lambda llm: llm.lens(IDS, at=20), "at: expected -8 to 7, got 20"),
        (lambda llm: llm.attribution(IDS, 10**9), "token: "),
        (lambda llm: llm.attribution(IDS, "two whole words"), "token: expected a text of one"),
        (lambda llm: llm.patch(IDS, IDS[1:], "embd", 1, 2), "patch: 8 tokens in the clean"),
        (lambda llm: llm.patch(IDS, IDS, "embd", 1, 2), "the same logit difference"),
        (lambda llm: llm.patch(IDS, IDS, "nowhere", 1, 2), "'nowhere' is none of this model's"),
    ],
)
def test_what_cannot_be_asked(call: Callable[[LLM], Any], message: str, llm: LLM) -> None:
    with pytest.raises(RequestError, match=message):
        call(llm)


def test_measures() -> None:
    p = np.array([[0.5, 0.25, 0.25], [0.125, 0.125, 0.75]])
    logits = np.log(p) + np.array([[3.0], [-2.0]])
    np.testing.assert_allclose(logprobs(logits), np.log(p), atol=1e-12)
    np.testing.assert_allclose(entropy(logits), -(p * np.log(p)).sum(axis=1), atol=1e-12)
    np.testing.assert_allclose(nll(logits, [0, 2]), [-np.log(0.25)], atol=1e-12)
    assert entropy(np.array([0.0, -np.inf])) == 0
    with pytest.raises(RequestError, match="nll: expected logits of 3 positions, got 2"):
        nll(logits, [0, 1, 2])
