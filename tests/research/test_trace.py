"""Traces and edits: what is kept is what was computed, and what is changed is what follows."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from m40llm import SamplingParams
from m40llm.errors import RequestError
from m40llm.research import LLM
from m40llm.research.edits import Edits

IDS = [5, 9, 200, 31, 77, 8, 14, 3]
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"arch": "qwen3"},
    "olmo2": {"arch": "olmo2"},
    "granite": {"arch": "granite", "metadata": {"granite.residual_scale": 0.5}},
    "gemma2": {"arch": "gemma2", "metadata": {"gemma2.attention.sliding_window": 5}},
    "mixtral": {"arch": "mixtral"},
}


@pytest.mark.parametrize("name", MODELS)
def test_the_stream_is_the_sum_of_its_parts(name: str, loaded: Callable[..., LLM]) -> None:
    llm = loaded(**MODELS[name])
    with llm.trace(IDS, keep="*") as t:
        pass
    assert t.kept == llm.sites()
    for layer in range(llm.hparams.n_layers):
        at = f"blk.{layer}"
        mid = t[f"{at}.resid_pre"] + t[f"{at}.attn_out"]
        np.testing.assert_array_equal(t[f"{at}.resid_mid"], mid)
        np.testing.assert_array_equal(t[f"{at}.resid_post"], mid + t[f"{at}.mlp_out"])
        scores, pattern = t[f"{at}.scores"], t[f"{at}.pattern"]
        assert scores.shape == pattern.shape == (len(IDS), llm.hparams.n_heads, len(IDS))
        assert np.isneginf(scores[:, :, 1:][0]).all()  # causal
        assert (pattern[np.isneginf(scores)] == 0).all()
        # Each is rounded once to FP32, so n of them stray from 1 by n ulp at most.
        np.testing.assert_allclose(pattern.sum(axis=2), 1, atol=len(IDS) * 2.0**-24)
    assert t["logits"].shape == (len(IDS), llm.hparams.vocab_size)


def test_looking_changes_no_bit(llm: LLM) -> None:
    plain = llm.logits(IDS)
    for keep in ("blk.*.resid_*", "blk.*.[qkv]", "blk.*.z", "*norm", "blk.*.act"):
        with llm.trace(IDS, keep=keep).keep("logits") as t:
            pass
        np.testing.assert_array_equal(t["logits"], plain)
    assert llm.transformer.hooks is None


def test_positions_and_prompts(llm: LLM) -> None:
    prompts = [IDS, IDS[:3], "ab"]
    with llm.trace(prompts, keep="blk.1.q") as whole:
        pass
    with llm.trace(prompts, keep="blk.1.q", at=-1) as last, pytest.raises(RequestError):
        last.keep("blk.1.q", at=5)  # the second prompt has 3
    with llm.trace(IDS, keep="blk.1.q", at=[1, 4]).keep("blk.1.k", at=slice(2, 5)) as some:
        pass
    for n, ids in enumerate(whole.prompts):
        assert whole["blk.1.q", n].shape[0] == len(ids)
    np.testing.assert_array_equal(some["blk.1.q"], whole["blk.1.q", 0][[1, 4]])
    assert some["blk.1.k"].shape[0] == 3
    with llm.trace(IDS, keep="blk.1.q", at=[4, 1, -4]) as turned:  # in the order of the text
        pass
    np.testing.assert_array_equal(turned["blk.1.q"], some["blk.1.q"])


def test_a_long_prompt_goes_through_in_pieces(loaded: Callable[..., LLM]) -> None:
    llm = loaded(context_length=1024)
    ids = np.random.default_rng(0).integers(0, 250, 700).tolist()
    assert llm.transformer.workspace.max_tokens < len(ids)
    with llm.trace(ids, keep=("blk.1.pattern", "blk.1.scores", "blk.1.resid_post")) as t:
        t.add("blk.0.resid_post", np.arange(700 * 64).reshape(700, 64) / 7000)
    assert t["blk.1.pattern"].shape == t["blk.1.scores"].shape == (700, 4, 700)
    with llm.trace(ids[:100], keep="blk.1.pattern") as short:
        short.add("blk.0.resid_post", np.arange(100 * 64).reshape(100, 64) / 7000)
    np.testing.assert_allclose(t["blk.1.pattern"][:100, :, :100], short["blk.1.pattern"], atol=1e-5)
    last = short["blk.1.pattern"]
    with llm.trace(ids, keep="blk.1.pattern", at=650) as t:
        pass
    assert t["blk.1.pattern"].shape == (1, 4, 700)
    assert (t["blk.1.pattern"][0, :, 651:] == 0).all()
    assert last.shape == (100, 4, 100)


@pytest.mark.parametrize("device", ["cpu", "emulator", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_kept_on_the_device(device: str, loaded: Callable[..., LLM]) -> None:
    llm = loaded(device=device, head_dim=32, n_layers=1)
    with llm.trace(IDS, keep=("blk.0.z", "blk.0.pattern"), at=[6, 1]) as host:
        host.scale("blk.0.q", 2)
    with llm.trace(IDS).keep("blk.0.z", "blk.0.pattern", at=[6, 1], on_device=True) as t:
        t.scale("blk.0.q", 2)
    kept = t["blk.0.z"]
    assert kept.shape == (2, 4, 32)
    np.testing.assert_array_equal(llm.transformer.ops.read(kept), host["blk.0.z"])
    np.testing.assert_array_equal(t["blk.0.pattern"], host["blk.0.pattern"])
    assert llm.transformer.workspace.rows(8).attn_heads is not kept


@pytest.mark.gpu
def test_torch_reads_where_it_lies(loaded: Callable[..., LLM]) -> None:
    torch = pytest.importorskip("torch", reason="no torch")
    llm = loaded(device="cuda", head_dim=32, n_layers=1)
    with llm.trace(IDS).keep("blk.0.z", on_device=True) as t:
        pass
    kept = t["blk.0.z"]
    for taken in (torch.from_dlpack(kept), torch.as_tensor(kept, device="cuda")):
        assert taken.data_ptr() == kept.address
        np.testing.assert_array_equal(taken.cpu().numpy(), llm.transformer.ops.read(kept))
    part = torch.from_dlpack(kept[1:, ::2])
    np.testing.assert_array_equal(part.cpu().numpy(), llm.transformer.ops.read(kept)[1:, ::2])


def test_a_long_prompt_on_the_device_is_said(loaded: Callable[..., LLM]) -> None:
    llm = loaded(context_length=1024)
    with llm.trace([7] * 700).keep("embd", on_device=True) as t:
        pass
    with pytest.raises(RequestError, match=r"embd lies on the device in \d pieces"):
        t["embd"]


def test_ablated_attention_adds_nothing(llm: LLM) -> None:
    with llm.trace(IDS, keep="blk.1.resid_*") as t:
        t.ablate("blk.1.attn_out").ablate("blk.1.mlp_out", at=[0, -1])
    np.testing.assert_array_equal(t["blk.1.resid_mid"], t["blk.1.resid_pre"])
    same = (t["blk.1.resid_post"] == t["blk.1.resid_mid"]).all(axis=1)
    assert same.tolist() == [True, *[False] * 6, True]


def test_heads(llm: LLM) -> None:
    keep = ("blk.0.z", "blk.0.attn_out", "blk.1.resid_pre")
    with llm.trace(IDS, keep=keep) as plain:
        pass
    with llm.trace(IDS, keep=keep) as t:
        t.scale("blk.0.z", 0, head=[1, 3], at=2).scale("blk.0.z", 2, head=0)
    z = plain["blk.0.z"].copy()
    z[2, [1, 3]] = 0
    z[:, 0] *= 2
    np.testing.assert_array_equal(t["blk.0.z"], z)
    assert not np.array_equal(t["blk.1.resid_pre"], plain["blk.1.resid_pre"])


def test_a_pattern_can_be_drawn_by_hand(llm: LLM) -> None:
    """A head that looks at the first token alone gathers that token's v."""
    at_first = np.zeros(len(IDS), np.float32)
    at_first[0] = 1
    with llm.trace(IDS, keep=("blk.1.v", "blk.1.z", "blk.1.pattern")) as t:
        t.replace("blk.1.pattern", at_first, head=2)
    group = llm.hparams.n_heads // llm.hparams.n_kv_heads
    v = t["blk.1.v"][0, 2 // group]
    np.testing.assert_array_equal(t["blk.1.z"][:, 2], np.broadcast_to(v, (len(IDS), v.size)))
    with llm.trace(IDS, keep="blk.1.pattern") as t:  # what is masked stays so
        t.replace("blk.1.scores", 0.0)
    np.testing.assert_allclose(t["blk.1.pattern"][3, 0], [0.25] * 4 + [0] * 4)


def test_a_function_of_mine(llm: LLM) -> None:
    seen = []

    def look(x: Any) -> Any:
        seen.append(x.shape)
        return -x

    with llm.trace(IDS, keep="blk.0.k") as t:
        t.change("blk.0.k", look, head=1, at=slice(3))
    with llm.trace(IDS, keep="blk.0.k") as plain:
        pass
    assert seen == [(3, 1, 16)]
    np.testing.assert_array_equal(t["blk.0.k"][:3, 1], -plain["blk.0.k"][:3, 1])
    np.testing.assert_array_equal(t["blk.0.k"][3:], plain["blk.0.k"][3:])


def test_a_whole_pass_can_be_put_into_another(llm: LLM) -> None:
    others = [*IDS[:-1], 100]
    with llm.trace(IDS, keep=("embd", "logits")) as source:
        pass
    with llm.trace(others, keep="logits") as t:
        t.replace("embd", source["embd"])
    np.testing.assert_array_equal(t["logits"], source["logits"])


def test_edits_hold_while_text_is_made(llm: LLM) -> None:
    plain = llm.generate(IDS, GREEDY).ids
    with llm.edited() as edits:
        assert llm.generate(IDS, GREEDY).ids == plain  # nothing is changed yet
        edits.change("logits", lambda x: np.where(np.arange(x.shape[1]) == 42, 1e4, x))
        assert llm.generate(IDS, GREEDY).ids == [42] * 12
        assert llm.decode_form == "host"
    assert llm.generate(IDS, GREEDY).ids == plain
    with llm.edited() as edits:
        edits.ablate("blk.*.attn_out", at=[len(IDS), len(IDS) + 1])
        late = llm.generate(IDS, GREEDY).ids
    assert late[0] == plain[0]
    assert late != plain


def test_a_trace_within_edits_sees_them(llm: LLM) -> None:
    with llm.trace(IDS, keep="embd") as plain:
        pass
    with llm.edited() as edits:
        edits.scale("embd", 3)
        with llm.trace(IDS, keep="embd") as t:
            t.scale("embd", 2)
        assert llm.decode_form == "host"
    np.testing.assert_array_equal(t["embd"], 6 * plain["embd"])
    with pytest.raises(RequestError, match="this one has run; make another"), t:
        pass


def test_values_of_positions_go_to_these(llm: LLM) -> None:
    rows = np.arange(2 * 64, dtype=np.float32).reshape(2, 64)
    with llm.trace(IDS, keep="embd") as t:
        t.replace("embd", rows, at=[5, 2])
    np.testing.assert_array_equal(t["embd"][[5, 2]], rows)


def test_edits_leave_nothing_in_the_cache(llm: LLM) -> None:
    before = llm.logits(IDS)
    with llm.edited() as edits:
        edits.scale("embd", 3)
        assert not np.array_equal(llm.logits(IDS), before)
    np.testing.assert_array_equal(llm.logits(IDS), before)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: e.scale("blk.9.z", 0), r"site: 'blk.9.z' is none of this model's; llm.sites"),
        (lambda e: e.scale(7, 0), "site: expected a name or glob, got 7"),
        (lambda e: e.scale("blk.0.act", 0, head=1), "head: blk.0.act has no heads"),
        (lambda e: e.scale("blk.0.z", 0, head=4), "head: expected 0 to 3 at blk.0.z, got 4"),
        (lambda e: e.scale("blk.0.k", 0, head=2), "head: expected 0 to 1 at blk.0.k, got 2"),
        (lambda e: e.scale("blk.0.z", 0, head=[]), "head: expected 0 to 3"),
        (lambda e: e.scale("blk.0.z", "much"), "scale: expected numbers, got 'much'"),
        (lambda e: e.change("blk.0.z", 3), "change: expected a function, got 3"),
        (lambda e: e.scale("blk.0.z", 0, at=-1), "at: expected 0 or above, got -1"),
        (lambda e: e.scale("blk.0.z", 0, at=slice(2)), "at: expected positions while text is"),
        (lambda e: e.scale("blk.0.z", 0, at="3"), "at: expected a position, a slice or several"),
    ],
)
def test_what_cannot_be_edited(call: Callable[[Edits], Any], message: str, llm: LLM) -> None:
    with llm.edited() as edits, pytest.raises(RequestError, match=message):
        call(edits)


def test_what_cannot_be_traced(llm: LLM) -> None:
    with llm.trace(IDS, keep="embd") as t:
        with pytest.raises(RequestError, match="nothing is there before the `with` block has"):
            t["embd"]
        with pytest.raises(RequestError, match="at: expected -8 to 7, got 8"):
            t.keep("norm", at=8)
    with pytest.raises(RequestError, match="'norm' was not kept"):
        t["norm"]
    with pytest.raises(RequestError, match="the `with` block has ended"):
        t.keep("norm")
    with llm.trace([IDS, IDS], keep="embd") as two:
        pass
    with pytest.raises(RequestError, match=r"of 2 prompts, say which: trace\[site, n\]"):
        two["embd"]
    with pytest.raises(RequestError, match="expected prompt 0 to 1, got 2"):
        two["embd", 2]
    with pytest.raises(RequestError, match="prompt 1: "):
        llm.trace([IDS, []])


def mistaken(x: Any) -> Any:
    raise ValueError("of mine")


def test_values_of_a_wrong_shape_are_said_and_nothing_is_left_behind(llm: LLM) -> None:
    before = llm.logits(IDS)
    expected = r"replace at blk.1.z: expected values of shape \[8, 1, 16\]"
    with pytest.raises(RequestError, match=expected), llm.trace(IDS) as t:
        t.replace("blk.1.z", np.zeros(17), head=0)
    assert llm.transformer.hooks is None
    np.testing.assert_array_equal(llm.logits(IDS), before)
    with pytest.raises(ZeroDivisionError), llm.trace(IDS) as t:
        t.change("blk.1.z", lambda x: x / 0 if x.size == 0 else 1 // 0)
    np.testing.assert_array_equal(llm.logits(IDS), before)
    with pytest.raises(ValueError, match="of mine"), llm.trace(IDS) as t:
        t.change("blk.1.z", mistaken)
    expected = r"change at blk.1.z: expected values of shape \[8, 4, 16\], .* got \[3\]"
    with pytest.raises(RequestError, match=expected), llm.trace(IDS) as t:
        t.change("blk.1.z", lambda x: np.zeros(3))
    expected = r"expected .* \[4, 64\], .* got \[3, 64\]"
    with pytest.raises(RequestError, match=expected), llm.trace(IDS) as t:
        t.add("embd", np.zeros((3, 64)), at=slice(4))
    with pytest.raises(KeyError), llm.trace(IDS, keep="embd") as t:
        raise KeyError("of the caller's own")
