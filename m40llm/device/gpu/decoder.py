"""CardDecoder: a decoder on a card, with its rings; what a step is, its kinds say.

ProgramDecoder   program_decoder.py   one kernel for the whole step, in all forms
OpsDecoder       ops_decoder.py       the model's own ops, in the eager and graph forms
"""

from abc import ABC, abstractmethod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from m40llm.device.decoder import Answer, Done, Form, SlotRequest
from m40llm.device.gpu.card import Card
from m40llm.device.gpu.decode_state import HostRings
from m40llm.kernels.contract import check_array
from m40llm.kernels.program import state as rings
from m40llm.kernels.program.state import DecodeState

MAX_BIAS: Final = 64
AHEAD: Final = 2  # steps under way, of the graph and eager forms
_REASONS: Final[dict[int, Done | None]] = {
    rings.GOES_ON: None,
    rings.STOP_TOKEN: "stop",
    rings.LENGTH: "length",
    rings.CONTEXT: "context",
    rings.CANCELLED: "cancelled",
    rings.DAMAGED: "damaged",
}


class CardDecoder(ABC):
    """Implements `device.decoder.Decoder`. One slot for each sequence of the cache."""

    forms: tuple[Form, ...]
    max_bias = MAX_BIAS
    max_stop_ids = rings.MAX_STOP_IDS

    def __init__(self, card: Card, state: DecodeState, host_rings: HostRings) -> None:
        self._card, self._state, self._rings = card, state, host_rings
        n_slots, self._vocab_size = (int(n) for n in state.raw.shape)
        self._n_commands = self._n_answers = 0
        self._next_mask = [0] * n_slots  # the position that its token will take
        self._kept: list[Answer] = []  # read already, and not asked for yet
        self._under_way: list[Any] = []  # ends of steps enqueued, of the graph and eager forms
        self._graph: Any = None
        self._is_launched = False

    @abstractmethod
    def _step(self) -> None:
        """Enqueues one step."""

    @abstractmethod
    def _take_commands(self) -> None:
        """Enqueues what takes those that are in the ring, if nothing that runs does."""

    @abstractmethod
    def make_way(self) -> None: ...

    def why_not(self, form: Form) -> str:
        return ""

    @property
    def device(self) -> str:
        return self._card.about

    def begin(self, slot: int, request: SlotRequest) -> None:
        # A launch that goes on would take the command before its slot is written.
        self.make_way()
        self._wait()
        write, state, sampler = self._card.write, self._state, self._state.sampler
        r = request
        settings = (r.temperature, r.top_p, r.min_p)
        penalties = (r.repetition_penalty, r.presence_penalty, r.frequency_penalty)
        for buffer, value in (
            (state.token_ids, r.token_id),
            (state.pos, r.pos),
            (state.masked, r.is_constrained),
            (sampler.top_k, r.top_k),
            (sampler.seed, r.seed),
        ):
            write(buffer[slot : slot + 1], np.array([value], buffer.dtype))
        for buffer, values, filler in (
            (state.stop_ids, r.stop_ids, -1),
            (sampler.settings, (*settings, *penalties), 0),
            (sampler.bias_ids, r.logit_bias, -1),
            (sampler.bias_values, r.logit_bias.values(), 0),
        ):
            write(buffer[slot], _padded(values, buffer.shape[1], filler, buffer.dtype))
        history = r.history if r.history is not None else np.zeros(self._vocab_size, np.int32)
        write(sampler.history[slot], history)
        self._rings.masks[slot] = 0  # of another request: positions would be the same
        self._next_mask[slot] = r.pos + 1
        self._command(rings.DECODE, slot, r.count)

    def allow(self, slot: int, mask: NDArray[np.uint32]) -> None:
        check_array("mask", mask, np.uint32, self._rings.masks.shape[1:])
        number = np.int64(self._next_mask[slot] << 32)
        # Whole words of 8 bytes, in any order: each has the number with it.
        np.bitwise_or(mask, number, out=self._rings.masks[slot])
        self._next_mask[slot] += 1

    def advance(self, form: Form, *, one_step: bool = False) -> None:
        card = self._card
        self._under_way = [end for end in self._under_way if not card.has_come(end)]
        if len(self._under_way) < AHEAD:
            if form == "graph" and self._is_launched:
                self._recorded().replay()
            else:  # what a graph records must have been launched, that is compiled, before
                self._step()
                self._is_launched = True
            self._under_way.append(card.event())

    def _recorded(self) -> Any:
        """The graph of one step."""
        if self._graph is None:
            with self._card.capture() as graph:
                self._step()
            self._graph = graph
        return self._graph

    def answers(self) -> list[Answer]:
        found, self._kept = self._kept, []
        while (answer := self._next_answer()) is not None:
            found.append(answer)
        self._rings.n_taken[0] = self._n_answers
        return found

    def _next_answer(self) -> Answer | None:
        what, value = (int(v) for v in self._rings.answers[self._n_answers % rings.N_ANSWERS])
        number = self._n_answers + 1 & rings.NUMBER_MASK
        if what >> 32 != number or value >> 32 != number:
            return None
        self._n_answers += 1
        slot, done, token_id, logprob = rings.told(what, value)
        return Answer(slot, token_id, logprob, _REASONS[done])

    def _command(self, operation: int, slot: int = 0, count: int = 0) -> None:
        self._n_commands += 1
        rings.put_command(self._rings.commands, self._n_commands, operation, slot, count)

    def cancel(self, *slots: int) -> None:
        for slot in slots:
            self._command(rings.CANCEL, slot)
        self.make_way()
        self._take_commands()
        self._wait()
        self._kept = [answer for answer in self.answers() if answer.slot not in slots]

    def _wait(self) -> None:
        self._card.read(self._state.control)

    def recover(self) -> None:
        """Counters that a launch was broken off between; epochs go on beyond any that were used."""
        self.make_way()  # a launch that nothing is wrong with would go on for whole answers
        write, state = self._card.write, self._state
        step = int(np.asarray(self._card.read(state.control))[rings.STEP])
        self.answers()  # of what is given up, as far as they are whole
        self._rings.answers[:] = 0
        control = [self._n_commands, self._n_answers, step + self._card.max_steps + 1, 0]
        write(state.control, np.array(control, np.int64))
        write(state.arrived, np.zeros(3, np.uint64))
        write(state.n_left, np.zeros(state.n_left.shape, np.int32))
        self._under_way = []


def _padded(values: Any, n: int, filler: float, dtype: Any) -> NDArray[Any]:
    row = np.full(n, filler, dtype)
    given = list(values)
    row[: len(given)] = given
    return row
