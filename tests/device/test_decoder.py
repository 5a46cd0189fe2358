"""CardDecoder with more slots than are at work."""

from typing import Any

import pytest

from m40llm.bench.synthetic import synthetic_model
from m40llm.device import open_device
from m40llm.device.decoder import FORMS, Form, SlotRequest
from m40llm.device.gpu.ops import GpuOps
from m40llm.engine.decode_step import decode
from m40llm.model.hparams import HParams, RopeParams

SMALL = HParams(
    arch="llama",
    context_length=64,
    vocab_size=300,
    n_layers=1,
    n_embd=128,
    n_ff=256,
    n_heads=2,
    n_kv_heads=1,
    head_dim=64,
    norm_eps=1e-5,
    rope=RopeParams(rope_dim=64),
)


@pytest.fixture(scope="module", params=["emulator", pytest.param("cuda", marks=pytest.mark.gpu)])
def decoder(request: pytest.FixtureRequest) -> Any:
    ops, _ = open_device(request.param)
    assert isinstance(ops, GpuOps)
    return synthetic_model(ops, SMALL, "F16", n_seqs=4, max_seq_len=32).decoder


@pytest.mark.parametrize("form", FORMS)
def test_one_slot_of_four(decoder: Any, form: Form) -> None:
    expected = None
    for slot in (0, 3, 0):
        answers = list(decode(decoder, form, SlotRequest(7, 0, 8), slot))
        assert [answer.slot for answer in answers] == [slot] * 8
        tokens = [answer.token_id for answer in answers]
        expected = tokens if expected is None else expected
        assert tokens == expected
