"""DRY's breakers: texts become the tokens that contain them, before the engine sees the request."""

from pathlib import Path

import pytest

from m40llm import LLM, SamplingParams
from m40llm.errors import RequestError
from m40llm.llm.breakers import with_breaker_ids
from m40llm.testing import write_tiny_gguf
from m40llm.text import tokenizer_from_gguf


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("breakers") / "tiny.gguf")


def test_every_token_that_contains_one(model: Path) -> None:
    tokenizer = tokenizer_from_gguf(model)
    params = SamplingParams(dry_multiplier=1.0, dry_breakers=("e", 3))
    ids = with_breaker_ids(params, tokenizer).dry_breakers
    assert ids[0] == 3
    spelled = [tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size)]
    assert list(ids[1:]) == [i for i, piece in enumerate(spelled) if b"e" in piece]
    assert len(ids) > 1


def test_nothing_is_looked_up_where_dry_is_off(model: Path) -> None:
    params = SamplingParams()
    assert with_breaker_ids(params, tokenizer_from_gguf(model)) is params


def test_dry_breaks_a_loop(model: Path) -> None:
    """A model of noise that goes round in circles: with DRY no five tokens come twice."""
    with LLM.load(model, device="cpu") as llm:
        loop = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True, logit_bias={5: 50.0})
        assert set(llm.generate([1], loop).ids) == {5}
        dry = SamplingParams(
            temperature=0, max_tokens=60, ignore_eos=True, logit_bias={5: 50.0},
            dry_multiplier=30.0, dry_breakers=(),
        )  # fmt: skip
        ids = llm.generate([1], dry).ids
        assert not [at for at in range(len(ids)) if ids[at : at + 5] == [5] * 5]


def test_the_engine_takes_no_texts(model: Path) -> None:
    with LLM.load(model, device="cpu") as llm, pytest.raises(RequestError, match="dry_breakers"):
        llm._open_engine().check_params(SamplingParams(dry_multiplier=1.0))
