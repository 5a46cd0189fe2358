"""DeviceSlots: the slots whose tokens the device's decoder makes by itself.

One decoder has all slots, so that a step always has the same rows, and a request's bits do not
depend on how many others there are. Where nobody asks for that, decoders of fewer slots take
turns with it: a step of one row takes a fraction of one of 32. They share the cache, and a slot
goes from one to another between two tokens, as a request whose first tokens are known.
"""

from collections.abc import Sequence
from typing import Final

from m40llm.device.decoder import Answer, Decoder, Form, SlotRequest
from m40llm.engine.decode_step import begin, decode, slot_request
from m40llm.engine.engine import Engine
from m40llm.engine.slot import Slot

SMALL: Final = (1, 2, 4, 8)  # slots: what a decode program has on a card
_PATIENCE: Final = 16  # tokens that a smaller decoder could have made, before it does


class DeviceSlots:
    """Of an engine's model. batch_invariant: one decoder for all slots, always."""

    def __init__(self, engine: Engine, n_slots: int, *, batch_invariant: bool) -> None:
        self._engine, self._model = engine, engine.model
        self._sizes = [n_slots]
        if not batch_invariant and engine.decode_form != "host":
            self._sizes = [n for n in SMALL if n < n_slots and self._works(n)] + [n_slots]
        self._size = n_slots
        self._n_spare = 0  # tokens made since this size was needed

    def begin(self, slot: Slot, slots: Sequence[Slot]) -> None:
        """One of the slots goes on here. RequestError where its constraint lets no token come."""
        at_work = [other for other in slots if other.is_on_device]
        self._fit(at_work, max(other.index for other in [*at_work, slot]) + 1)
        self._begin(slot)
        slot.is_on_device = True

    def cancel(self, slot: Slot) -> None:
        slot.is_on_device = False
        self.decoder.cancel(slot.index)

    def make_way(self, slots: Sequence[Slot]) -> None:
        """A launch that goes on for whole answers ends, for what is enqueued next."""
        if any(slot.is_on_device for slot in slots):
            self.decoder.make_way()

    def advance(self, slots: Sequence[Slot], *, one_step: bool) -> list[Answer]:
        """What has been made since the last call; more is under way."""
        at_work = [slot for slot in slots if slot.is_on_device]
        if not at_work:
            return []
        self._fit(at_work, max(slot.index for slot in at_work) + 1)
        self.decoder.advance(self._form, one_step=one_step)
        answers = self.decoder.answers()
        self._n_spare += len(answers)
        return answers

    @property
    def decoder(self) -> Decoder:
        """The one at work."""
        return self._known(self._size)

    @property
    def _form(self) -> Form:
        """The engine's; or persistent, where only the decoder of all slots has no such form."""
        form, whole = self._engine.decode_form, self._known(self._sizes[-1])
        assert form != "host"
        if self._size < self._sizes[-1] and whole.why_not("persistent"):
            return "persistent" if "persistent" in self.decoder.forms else form
        return form

    def _known(self, size: int) -> Decoder:
        decoder = self._model.decoder_of(size)
        assert not isinstance(decoder, str)
        return decoder

    def _works(self, size: int) -> bool:
        """Whether there is such a decoder; its kernels are compiled here, and not while others
        wait for their tokens."""
        decoder, form = self._model.decoder_of(size), self._engine.decode_form
        if isinstance(decoder, str) or form == "host" or decoder.why_not(form):
            return False
        self._size = size
        for _ in decode(decoder, self._form, SlotRequest(token_id=0, pos=0, count=2)):
            pass
        return True

    def _begin(self, slot: Slot) -> None:
        job = slot.job
        assert job is not None
        request = slot_request(job.request, self._model.hp.vocab_size)
        begin(self.decoder, request, slot.index, job.request.constraint)

    def _fit(self, at_work: Sequence[Slot], n_needed: int) -> None:
        """The smallest decoder of so many slots: at once where this one is too small."""
        wanted = next(size for size in self._sizes if size >= n_needed)
        if wanted == self._size:
            self._n_spare = 0
        elif wanted > self._size or not at_work or self._n_spare >= _PATIENCE:
            self._move(wanted, at_work)

    def _move(self, size: int, at_work: Sequence[Slot]) -> None:
        """What the old decoder has made and nobody has heard of is made again."""
        if at_work:
            self.decoder.cancel(*(slot.index for slot in at_work))
        self._size, self._n_spare = size, 0
        for slot in at_work:
            self._begin(slot)
