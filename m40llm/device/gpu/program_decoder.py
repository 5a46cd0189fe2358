"""ProgramDecoder: a decode program on a card, in each of its forms."""

from collections.abc import Sequence
from typing import Any

from m40llm.device.decoder import FORMS, STEPPED, Form, ModelParts
from m40llm.device.gpu.bind import bind, form_of
from m40llm.device.gpu.bound import Setting
from m40llm.device.gpu.card import Card
from m40llm.device.gpu.decode import encode
from m40llm.device.gpu.decode_state import new_partial, new_state
from m40llm.device.gpu.decoder import MAX_BIAS, CardDecoder
from m40llm.device.gpu.shares import new_parts
from m40llm.device.instructions import Instruction, Project
from m40llm.kernels.layouts import DENSE, LAYOUTS
from m40llm.kernels.program import state as rings
from m40llm.kernels.program.form import MAX_TYPES
from m40llm.kernels.program.run import Program, run_once, run_persistent


def why_not(program: Sequence[Instruction], parts: ModelParts) -> str:
    """Why the card cannot run this program; empty where it can."""
    types = {parts.weights[one.weight].type for one in program if isinstance(one, Project)}
    if len(types) > MAX_TYPES:
        return f"its matrices have {len(types)} types, of which a program holds {MAX_TYPES}"
    if odd := [type.name for type in types if type not in LAYOUTS and type not in DENSE]:
        return f"no product of {odd[0]}"
    widest = max(parts.weights[one.weight].n_cols for one in program if isinstance(one, Project))
    if parts.n_embd % 4 or widest % 4:
        return "its vectors are no multiple of 4 long"
    if parts.k.shape[1] not in (1, 2, 4, 8):
        return f"{parts.k.shape[1]} sequences: expected 1, 2, 4 or 8"
    return ""


class ProgramDecoder(CardDecoder):
    """One kernel makes the whole step."""

    def __init__(self, card: Card, program: Sequence[Instruction], parts: ModelParts) -> None:
        # A launch that goes on for a whole answer keeps a display from being drawn.
        self.forms = STEPPED if card.has_time_limit else FORMS
        form, n_blocks = form_of(program, parts), card.n_sms
        partial = new_partial(card, form, n_blocks)
        sizes = form.n_seqs, parts.vocab_size, n_blocks, MAX_BIAS
        super().__init__(card, *new_state(card, *sizes, partial=partial))
        self._parts = parts  # what the instructions point to
        self._instructions = bind(card, program, parts)
        self._setting = Setting(
            *(form, self._state, parts.table.rows, parts.norm_eps, parts.scale, parts.k.shape[3]),
            new_parts(card, self._instructions, form, n_blocks),
        )
        code = card.upload(encode(self._instructions, self._setting))
        self._program = Program(form, code, self._state.arrived, n_blocks)
        self._ended: Any = None  # the end of the last launch of the persistent form
        self._yielded: Any = None  # the launch that has been told to end, by its end

    def advance(self, form: Form, *, one_step: bool = False) -> None:
        if form != "persistent":
            super().advance(form)
            return
        card = self._card
        if self._ended is None or card.has_come(self._ended):
            run_persistent(self._program, 1 if one_step else card.max_steps, stream=card)
            self._ended = card.event()
            # Told to end while it waits for its turn, it would end before its first token.
            self._yielded = self._ended if one_step else None

    def _step(self) -> None:
        for at in range(len(self._instructions)):
            run_once(self._program, at, at + 1, stream=self._card)

    def _take_commands(self) -> None:
        run_persistent(self._program, 1, stream=self._card)

    def make_way(self) -> None:
        if self._ended in (None, self._yielded) or self._card.has_come(self._ended):
            return
        self._command(rings.YIELD)  # once a launch: the ring of commands has an end
        self._yielded = self._ended

    def recover(self) -> None:
        super().recover()
        self._ended, self._yielded = None, None
