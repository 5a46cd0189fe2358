"""Decoders with more slots than are at work, and with slots that join and leave."""

from dataclasses import replace
from typing import Any

import pytest

from m40llm.bench.synthetic import synthetic_model
from m40llm.device import open_device
from m40llm.device.decoder import FORMS, STEPPED, Answer, Form, SlotRequest
from m40llm.device.gpu.ops import GpuOps
from m40llm.engine.decode_step import decode
from m40llm.testing.tiny_shape import TINY_SHAPE

PROGRAM, OPS = 4, 5  # slots: of a decode program, and of the model's ops recorded
KINDS: list[tuple[int, Form]] = [
    *((PROGRAM, form) for form in FORMS),
    *((OPS, form) for form in STEPPED),
]


@pytest.fixture(scope="module", params=["emulator", pytest.param("cuda", marks=pytest.mark.gpu)])
def decoders(request: pytest.FixtureRequest) -> Any:
    """By their number of slots."""
    ops, _ = open_device(request.param)
    assert isinstance(ops, GpuOps)
    return {
        n: synthetic_model(ops, TINY_SHAPE, "F16", n_seqs=n, max_seq_len=32).decoder
        for n in (PROGRAM, OPS)
    }


@pytest.mark.parametrize(("n_slots", "form"), KINDS)
def test_one_slot_of_four(decoders: Any, n_slots: int, form: Form) -> None:
    decoder = decoders[n_slots]
    expected = None
    for slot in (0, 3, 0):
        answers = list(decode(decoder, form, SlotRequest(7, 0, 8), slot))
        assert [answer.slot for answer in answers] == [slot] * 8
        tokens = [answer.token_id for answer in answers]
        expected = tokens if expected is None else expected
        assert tokens == expected


def tokens_alone(decoder: Any, request: SlotRequest, slot: int) -> list[int]:
    return [answer.token_id for answer in decode(decoder, decoder.forms[-1], request, slot)]


def until_done(decoder: Any, form: Form, n_slots: int) -> list[Answer]:
    found: list[Answer] = []
    while sum(answer.done is not None for answer in found) < n_slots:
        decoder.advance(form)
        found += decoder.answers()
    return found


@pytest.mark.parametrize(("n_slots", "form"), KINDS)
def test_a_slot_joins_others_at_work(decoders: Any, n_slots: int, form: Form) -> None:
    """Its beginning does not wait for their end, and changes none of their tokens."""
    decoder = decoders[n_slots]
    first, second = SlotRequest(7, 0, 24), SlotRequest(9, 0, 8)
    expected = {0: tokens_alone(decoder, first, 0), 2: tokens_alone(decoder, second, 2)}
    decoder.begin(0, first)
    decoder.advance(form)
    decoder.begin(2, second)
    answers = until_done(decoder, form, 2)
    for slot, tokens in expected.items():
        assert [answer.token_id for answer in answers if answer.slot == slot] == tokens


@pytest.mark.parametrize(("n_slots", "form"), KINDS)
def test_a_slot_that_is_cancelled_leaves_the_others(
    decoders: Any, n_slots: int, form: Form
) -> None:
    decoder = decoders[n_slots]
    first = SlotRequest(7, 0, 12)
    expected = tokens_alone(decoder, first, 1)
    decoder.begin(1, first)
    decoder.begin(3, SlotRequest(9, 0, 20))
    if form != "persistent":  # on the emulator, a launch is over when `advance` returns
        decoder.advance(form)
    decoder.cancel(3)
    answers = until_done(decoder, form, 1)
    assert [(answer.slot, answer.token_id) for answer in answers] == [(1, t) for t in expected]


def test_all_slots_at_once(decoders: Any) -> None:
    """Of as many requests as there are slots, each has the answers that it has alone, bit for bit:
    in whichever slot."""
    decoder = decoders[OPS]
    requests = [SlotRequest(7 + 5 * s, 0, 4 + s) for s in range(OPS)]
    alone = [list(decode(decoder, "graph", request, 2)) for request in requests]
    for slot, request in enumerate(requests):
        decoder.begin(slot, request)
    answers = until_done(decoder, "graph", OPS)
    for slot, expected in enumerate(alone):
        found = [replace(answer, slot=2) for answer in answers if answer.slot == slot]
        assert found == expected


def test_a_step_of_ops_is_no_single_launch(decoders: Any) -> None:
    expected = f"{OPS} sequences: expected 1, 2, 4 or 8"
    assert decoders[OPS].why_not("persistent") == expected
    assert not any(decoders[PROGRAM].why_not(form) for form in FORMS)
