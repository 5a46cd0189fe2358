"""Embeddings: pooling by hand, hidden states against logits, pieces against the whole."""

from pathlib import Path

import numpy as np
import pytest

from m40llm import LLM
from m40llm.errors import RequestError
from m40llm.gguf import open_gguf
from m40llm.gguf.blocks import dequantize
from m40llm.llm.embed import POOLINGS, Pooling, pooled
from m40llm.testing import write_tiny_gguf

IDS = [1, 5, 9, 30, 7, 7, 2, 100, 64, 3]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("embed") / "tiny.gguf", tied=True)


@pytest.mark.parametrize(
    ("pooling", "wanted"), [("mean", [3.0, 6.0]), ("last", [7.0, 1.0]), ("cls", [0.0, 9.0])]
)
def test_pooling(pooling: Pooling, wanted: list[float]) -> None:
    states = np.array([[0, 9], [2, 8], [7, 1]], np.float32)
    assert pooled([states], pooling).tolist() == wanted
    assert pooled([states[:2], states[2:]], pooling).tolist() == wanted
    assert pooled([states[:1], states[1:2], states[2:]], pooling).tolist() == wanted


@pytest.mark.parametrize("device", ["cpu", "emulator"])
def test_hidden_states_are_what_the_logits_are_made_of(model: Path, device: str) -> None:
    """logits = W h, an FP32 sum of n products: off by gamma_n |W| |h|, gamma_n = nu / (1 - nu).

    h itself is the same in both passes, whose rows are the same; the mean of three of them is
    rounded to FP32, which moves W h by u |W| |h| more.
    """
    with open_gguf(model) as file:
        info = file.tensors["token_embd.weight"]
        w = dequantize(info.type, file.tensor_bytes(info.name)).reshape(info.shape)
    n, u = w.shape[1], 2.0**-24
    with LLM.load(model, device=device, decode="host") as llm:
        logits = llm.logits(IDS[:4]).astype(np.float64)
        wanted = {"last": logits[-1], "cls": logits[0], "mean": logits.mean(axis=0)}
        every = [llm.embed(IDS[: at + 1], "last", normalise=False) for at in range(4)]
        size = np.abs(w.astype(np.float64)) @ np.abs(np.array(every, np.float64)).max(axis=0)
        for pooling in POOLINGS:
            h = llm.embed(IDS[:4], pooling, normalise=False).astype(np.float64)
            bound = (n * u / (1 - n * u) + u) * size
            assert (np.abs(w @ h - wanted[pooling]) <= bound).all(), pooling


@pytest.mark.parametrize("pooling", POOLINGS)
def test_in_pieces_as_at_once(
    model: Path, pooling: Pooling, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LLM.load(model, device="cpu") as llm:
        whole = llm.embed(IDS, pooling)
        monkeypatch.setattr(llm.transformer.workspace, "max_tokens", 3)
        told: list[float] = []
        pieces = llm.embed(IDS, pooling, progress=lambda stage, done: told.append(done))
        np.testing.assert_allclose(pieces, whole, atol=1e-5)
        assert told == pytest.approx([0.3, 0.6, 0.9, 1.0])


def test_shapes_and_lengths(model: Path) -> None:
    with LLM.load(model, device="cpu") as llm:
        n_embd = llm.hparams.n_embd
        one, many = llm.embed("hello"), llm.embed(["hello", "world", [1, 2, 3]])
        assert one.shape == (n_embd,)
        assert many.shape == (3, n_embd)
        assert one.dtype == many.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(many, axis=1), 1.0, rtol=1e-6)
        np.testing.assert_array_equal(many[0], one)
        raw = llm.embed("hello", normalise=False)
        np.testing.assert_allclose(raw / np.linalg.norm(raw), one, rtol=1e-5, atol=1e-7)


def test_progress_goes_over_all_texts(model: Path) -> None:
    with LLM.load(model, device="cpu") as llm:
        told: list[float] = []
        llm.embed(["a", "b", "c", "d"], progress=lambda stage, done: told.append(done))
        assert told == [0.25, 0.5, 0.75, 1.0]


def test_generation_after_it_is_as_before(model: Path) -> None:
    """The cache of the one is not taken for the other's."""
    with LLM.load(model, device="cpu") as llm:
        before = llm.logits(IDS)
        llm.embed([4, 4, 4, 4])
        np.testing.assert_array_equal(llm.logits(IDS), before)


@pytest.mark.parametrize(
    ("prompt", "pooling", "told"),
    [
        ("hello", "max", "pooling: expected mean, last, cls, got 'max'"),
        ("hello", None, "pooling: expected mean, last, cls"),
        ([], "mean", "text 1: empty"),
        (["hello", []], "mean", "text 2: empty"),
        ([10**6], "mean", "token id 1000000"),
        (3, "mean", "text 1: expected a text or token ids, got 3"),
    ],
)
def test_refused(model: Path, prompt: object, pooling: object, told: str) -> None:
    with LLM.load(model, device="cpu") as llm:
        with pytest.raises(RequestError, match=told):
            llm.embed(prompt, pooling)  # type: ignore[arg-type]
        assert llm.embed("hello").size  # the turn was given back
