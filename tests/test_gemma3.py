"""Gemma 3 270M in Q4_K_M, a real model of alternating layers, against an independent FP32 run.

tests/goldens/make_gemma3.py made the numbers with HF transformers. The text is of 1,001 tokens:
only beyond 512 does the window of the local layers matter.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m40llm import LLM, SamplingParams
from m40llm.engine.sampling import log_softmax

GOLDENS = json.loads((Path(__file__).parent / "goldens" / "gemma3.json").read_text("utf-8"))
BOUNDS = {"cpu": (1e-4, 2e-3, 2e-3), "cuda": (5e-4, 0.1, 0.1)}  # of mean NLL, NLL, gaps
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(scope="module", params=DEVICES)
def llm(request: pytest.FixtureRequest, gemma3: Path) -> Iterator[LLM]:
    with LLM.load(gemma3, device=request.param, max_seq_len=1024, decode="host") as llm:
        yield llm


@pytest.mark.parametrize("row", GOLDENS["texts"], ids=lambda row: row["text"][:12])
def test_tokens(llm: LLM, row: dict[str, Any]) -> None:
    """User-defined tokens match though special ones are not parsed."""
    assert llm.tokenizer.encode(row["text"], add_bos=False, parse_special=False) == row["ids"]


@pytest.mark.parametrize("row", GOLDENS["greedy"], ids=lambda row: row["prompt"][:12])
def test_greedy_stream(llm: LLM, row: dict[str, Any]) -> None:
    """Identical up to the first near-tie of the reference's, if there is one."""
    gap = BOUNDS[llm.device_name.partition(":")[0]][2]
    n = len(row["ids"])
    n_sure = next((i for i, found in enumerate(row["gaps"]) if found <= gap), n)
    params = SamplingParams(temperature=0, max_tokens=n, ignore_eos=True)
    done = llm.generate(row["prompt"], params)
    assert done.prompt_ids == row["prompt_ids"]
    assert done.ids[:n_sure] == row["ids"][:n_sure]


def test_nll(llm: LLM) -> None:
    ids, theirs = GOLDENS["text"]["ids"], np.array(GOLDENS["text"]["nll"])
    of_mean, of_each, _ = BOUNDS[llm.device_name.partition(":")[0]]
    logits = llm.logits(ids)
    rows = zip(logits[:-1], ids[1:], strict=True)
    ours = np.array([-log_softmax(row.astype(np.float64))[i] for row, i in rows])
    assert abs(ours.mean() - theirs.mean()) < of_mean
    assert np.abs(ours - theirs).max() < of_each
