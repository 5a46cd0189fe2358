"""Ids that llama.cpp gives for the texts beside its vocabularies, and the way back."""

import os
from pathlib import Path

import pytest

from m40llm.text import tokenizer_from_gguf

ROOT = Path(os.environ.get("M40LLM_TEST_DATA", Path(__file__).parents[3] / "shared")) / "vocab"
FILES = sorted(ROOT.glob("*.gguf"))


@pytest.mark.skipif(not FILES, reason=f"no vocabularies in {ROOT} (M40LLM_TEST_DATA)")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_ids_are_those_of_llama_cpp(path: Path) -> None:
    tokenizer = tokenizer_from_gguf(path)
    text = Path(f"{path}.inp").read_bytes().decode("utf-8")
    expected = Path(f"{path}.out").read_text(encoding="utf-8").split("\n")
    texts = text.split("\n__ggml_vocab_test__\n")
    assert len(texts) == len(expected) == 47
    for sample, line in zip(texts, expected, strict=True):
        ids = tokenizer.encode(sample, add_bos=False)
        assert ids == [int(token_id) for token_id in line.split()], repr(sample)
        assert tokenizer.decode(ids) == sample
