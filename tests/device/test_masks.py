"""Slots whose tokens the host constrains: masks on the device, whenever they come."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from m40llm.bench.synthetic import synthetic_model
from m40llm.device import open_device
from m40llm.device.decoder import FORMS, STEPPED, Answer, Form, SlotRequest
from m40llm.device.gpu.ops import GpuOps
from m40llm.engine.constraint import ids_of
from m40llm.engine.decode_step import decode
from m40llm.engine.sampling import Chain
from m40llm.engine.sampling_params import SamplingParams
from m40llm.errors import KernelContractError, RequestError
from m40llm.model.batch import Batch
from m40llm.testing.tiny_shape import TINY_SHAPE

PROGRAM, OPS = 4, 5  # slots: of a decode program, and of the model's ops recorded
KINDS: list[tuple[int, Form]] = [
    *((PROGRAM, form) for form in FORMS),
    *((OPS, form) for form in STEPPED),
]
VOCAB_SIZE, FIRST, N_TOKENS = TINY_SHAPE.vocab_size, 7, 8
N_WORDS = -(-VOCAB_SIZE // 32)
GREEDY = SamplingParams(temperature=0)
SAMPLED = SamplingParams(temperature=1.2, top_k=40, top_p=0.95, repetition_penalty=1.3)
Mask = NDArray[np.uint32]


class DrawnMasks:
    """A constraint that depends on every token before: a mask too early or too late is another."""

    def __init__(self, seed: int, share: float = 0.2) -> None:
        self.heard, self._share = [seed], share

    def mask(self) -> Mask:
        bits = np.random.default_rng(self.heard).random(32 * N_WORDS) < self._share
        bits[len(self.heard)] = True
        return np.packbits(bits, bitorder="little").view("<u4").astype(np.uint32)

    def heed(self, token_id: int) -> None:
        assert token_id in ids_of(self.mask(), VOCAB_SIZE)
        self.heard.append(token_id)

    def fork(self) -> "DrawnMasks":
        raise NotImplementedError


@pytest.fixture(scope="module", params=["emulator", pytest.param("cuda", marks=pytest.mark.gpu)])
def ops(request: pytest.FixtureRequest) -> Any:
    opened, _ = open_device(request.param)
    assert isinstance(opened, GpuOps)
    return opened


@pytest.fixture(scope="module")
def models(ops: Any) -> dict[int, Any]:
    """Of four slots a decode program; of five its own ops, recorded."""
    return {
        n: synthetic_model(ops, TINY_SHAPE, "F16", n_seqs=n, max_seq_len=32) for n in (PROGRAM, OPS)
    }


@pytest.fixture(params=KINDS, ids=str)
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def model(models: dict[int, Any], kind: tuple[int, Form]) -> Any:
    return models[kind[0]]


@pytest.fixture
def form(kind: tuple[int, Form]) -> Form:
    return kind[1]


def request_of(params: SamplingParams, seed: int = 0, count: int = N_TOKENS) -> SlotRequest:
    history = np.zeros(VOCAB_SIZE, np.int32)
    history[FIRST] = 1  # it is the prompt
    return SlotRequest(
        *(FIRST, 0, count, params.temperature, params.top_k, params.top_p, params.min_p),
        repetition_penalty=params.repetition_penalty,
        seed=seed,
        history=history,
    )


def by_host(model: Any, params: SamplingParams, masks: DrawnMasks, seed: int = 0) -> list[int]:
    """The host's own loop: logits from the device, the choice by its chain, in sequence 3."""
    chain, ids = Chain(params, [FIRST], seed, masks), []
    for pos in range(N_TOKENS):
        last = ids[-1] if ids else FIRST
        logits = model.ops.read(model.forward(Batch.of((3, pos, [last]))))[0]
        ids.append(chain.choose(logits, ids))
    return ids


def tokens(answers: list[Answer], slot: int) -> list[int]:
    return [answer.token_id for answer in answers if answer.slot == slot]


def alone(model: Any, form: Form, request: SlotRequest, masks: Any, slot: int = 0) -> list[int]:
    return tokens(list(decode(model.decoder, form, request, slot, masks)), slot)


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("n_slots", [PROGRAM, OPS])
def test_every_form_gives_the_hosts_tokens(
    models: dict[int, Any], n_slots: int, params: SamplingParams
) -> None:
    model = models[n_slots]
    for seed, share in ((1, 0.2), (2, 0.02), (3, 0.9)):
        expected = by_host(model, params, DrawnMasks(seed, share), seed)
        for form in model.decoder.forms:
            masks = DrawnMasks(seed, share)
            found = list(decode(model.decoder, form, request_of(params, seed), 1, masks))
            assert tokens(found, 1) == expected
            assert masks.heard == [seed, *expected[:-1]]  # nothing follows the last
            assert all(np.isfinite(answer.logprob) for answer in found)


Waits = Callable[[int, int], int]  # rounds until the mask comes: (slot, how many have come)


def together(
    model: Any, form: Form, requests: dict[int, SlotRequest], masks: dict[int, DrawnMasks],
    waits: Waits,
) -> list[Answer]:  # fmt: skip
    """All slots at once; a mask is handed over so many rounds after its answer."""
    decoder, found, due = model.decoder, [], {}
    for slot, request in requests.items():
        decoder.begin(slot, replace(request, is_constrained=slot in masks))
    due = {slot: waits(slot, 0) for slot in masks}
    n_done = 0
    while n_done < len(requests):
        for slot in [slot for slot, rounds in due.items() if rounds <= 0]:
            decoder.allow(slot, masks[slot].mask())
            del due[slot]
        decoder.advance(form)
        due = {slot: rounds - 1 for slot, rounds in due.items()}
        for answer in decoder.answers():
            found.append(answer)
            n_done += answer.done is not None
            if answer.slot in masks and answer.done is None:
                masks[answer.slot].heed(answer.token_id)
                due[answer.slot] = waits(answer.slot, len(tokens(found, answer.slot)))
    return found


@pytest.mark.parametrize("late", [0, 3])
def test_slots_with_masks_beside_others(model: Any, form: Form, late: int) -> None:
    """Late or not, each has the tokens that it has alone; none waits for another's mask."""
    requests = {
        0: request_of(GREEDY, 1),
        1: request_of(SAMPLED, 2),
        2: request_of(SAMPLED, 3),
        3: request_of(GREEDY, 4, count=5),
    }
    masked = (0, 2)
    expected = {
        slot: alone(model, form, request, DrawnMasks(slot) if slot in masked else None, slot)
        for slot, request in requests.items()
    }
    masks = {slot: DrawnMasks(slot) for slot in masked}
    found = together(model, form, requests, masks, lambda slot, n: late * (n % 2))
    assert {slot: tokens(found, slot) for slot in requests} == expected
    if late and model.ops.name == "emulator":  # where a round is a step
        last = {answer.slot: i for i, answer in enumerate(found) if answer.done}
        assert max(last[1], last[3]) < min(last[0], last[2])


def test_a_host_that_does_not_answer(model: Any, form: Form) -> None:
    """No token without its mask, no launch without end; and the mask may come whenever it likes."""
    decoder, masks = model.decoder, DrawnMasks(5)
    expected = alone(model, form, request_of(GREEDY, 5), DrawnMasks(5))
    decoder.begin(0, replace(request_of(GREEDY, 5), is_constrained=True))
    found: list[Answer] = []
    for n in range(N_TOKENS):
        for _ in range(2):
            decoder.advance(form)
            model.ops.read(decoder._state.pos)  # until the launch has ended, by itself
            assert decoder.answers() == []
        assert int(model.ops.read(decoder._state.pos)[0]) == n
        decoder.allow(0, masks.mask())
        while len(found) == n:
            decoder.advance(form)
            found += decoder.answers()
        masks.heard.append(found[-1].token_id)
    assert tokens(found, 0) == expected
    assert [answer.done for answer in found] == [None] * (N_TOKENS - 1) + ["length"]


def test_what_is_broken_off_leaves_nothing(model: Any, form: Form) -> None:
    """Cancelled with a mask there, or awaited; recovered from; then the same positions again."""
    decoder, request = model.decoder, request_of(SAMPLED, 6)
    expected = alone(model, form, request, DrawnMasks(6))
    plain = alone(model, form, request, None)
    answers = decode(decoder, form, request, 0, DrawnMasks(8))
    for _ in range(3):
        next(answers)
    answers.close()
    assert alone(model, form, request, DrawnMasks(6)) == expected
    decoder.begin(0, replace(request, is_constrained=True))
    decoder.advance(form)
    decoder.cancel(0)
    assert alone(model, form, request, None) == plain
    decoder.begin(0, replace(request, is_constrained=True))
    decoder.advance(form)
    decoder.recover()
    assert alone(model, form, request, None) == plain
    assert alone(model, form, request, DrawnMasks(6)) == expected


class Broken(DrawnMasks):
    """Bans everything, or cannot go on, at its third mask."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__(9)
        self._error = error

    def mask(self) -> Mask:
        if len(self.heard) < 3:
            return super().mask()
        if self._error:
            raise self._error
        return np.zeros(N_WORDS, np.uint32)


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_masks_that_allow_nothing(model: Any, form: Form, params: SamplingParams) -> None:
    request = request_of(params, 9)
    expected = alone(model, form, request, DrawnMasks(9))
    for error, message in (
        (None, "every token that may come next is banned"),
        (RequestError("the constraint cannot go on"), "the constraint cannot go on"),
    ):
        with pytest.raises(RequestError, match=message):
            list(decode(model.decoder, form, request, 0, Broken(error)))
        assert alone(model, form, request, DrawnMasks(9)) == expected


@pytest.mark.parametrize("n_slots", [PROGRAM, OPS])
def test_contract(models: dict[int, Any], n_slots: int) -> None:
    model = models[n_slots]
    with pytest.raises(KernelContractError, match=rf"mask: expected uint32\[{N_WORDS}\]"):
        model.decoder.allow(0, np.zeros(N_WORDS + 1, np.uint32))
