"""OpsDecoder: a step of the model's own ops between two launches that the device needs for itself.

It serves what a decode program does not: other numbers of slots than 1, 2, 4 and 8, whose rows are
multiplied by gemm, and models with experts or soft caps. What the host's loop enqueues token by
token is here recorded once, and the token is chosen on the card.
"""

from m40llm.device.decoder import STEPPED, Form, OpsStep
from m40llm.device.gpu.card import Card
from m40llm.device.gpu.decode import state_words
from m40llm.device.gpu.decode_state import new_state
from m40llm.device.gpu.decoder import MAX_BIAS, CardDecoder
from m40llm.kernels.program.ends import MAX_SLOTS, N_BLOCKS, StepEnds, begin_step, end_step


def why_no_ops(step: OpsStep) -> str:
    """Why the card cannot run this step by itself; empty where it can."""
    n_slots = int(step.logits.shape[0])
    return f"{n_slots} sequences: expected up to {MAX_SLOTS}" if n_slots > MAX_SLOTS else ""


class OpsDecoder(CardDecoder):
    """Each op is a launch of its own; the graph form replays them."""

    forms = STEPPED

    def __init__(self, card: Card, step: OpsStep) -> None:
        n_seqs, vocab_size = (int(n) for n in step.logits.shape)
        state = new_state(card, n_seqs, vocab_size, N_BLOCKS, MAX_BIAS, raw=step.logits)
        super().__init__(card, *state)
        self._ops = step
        code = card.upload(state_words(self._state, step.max_seq_len)[None])
        self._ends = StepEnds(code, n_seqs)

    def why_not(self, form: Form) -> str:
        return self._ops.no_program if form == "persistent" else ""

    def make_way(self) -> None:
        """Steps that are enqueued one by one are in nobody's way."""

    def _step(self) -> None:
        begin_step(self._ends, stream=self._card)
        self._ops.run(self._state.token_ids, self._state.seq, self._state.row_pos)
        end_step(self._ends, stream=self._card)

    def _take_commands(self) -> None:
        begin_step(self._ends, stream=self._card)
