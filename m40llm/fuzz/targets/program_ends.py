"""The two ends of a step of a model's own ops: commands taken, tokens chosen, the host told."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m40llm import reference
from m40llm.device.gpu.decode import state_words
from m40llm.fuzz.contents import normals
from m40llm.fuzz.definition import target
from m40llm.fuzz.strategies import choices, flags, seeds, sizes
from m40llm.kernels.contract import ceil_div
from m40llm.kernels.program import ends as kernels
from m40llm.kernels.program import state as rings
from m40llm.kernels.program.epilogue import LOWEST
from m40llm.kernels.program.form import N_THREADS
from m40llm.kernels.program.mask import WORD_BITS, n_mask_words
from m40llm.kernels.sampling import GREEDY, IN_ANSWER, SamplerState

MAX_SEQ_LEN = 40
Array = NDArray[Any]


@dataclass
class Slots:
    """What was drawn of each, and what the host has said of it.

    count     tokens that it shall make; 0 for a slot that is idle
    allowed   bool[n_seqs, vocab_size]; None where the slot has no masks
    """

    pos: Array
    count: Array
    stop_ids: Array
    logits: Array
    allowed: list[Array | None]

    def expected(self, s: int) -> tuple[int, int]:
        """(token, why it is the slot's last) of a slot at work."""
        allowed, logits = self.allowed[s], self.logits[s]
        left = logits if allowed is None else np.where(allowed, logits, -np.inf)
        token = int(reference.argmax(left[None])[0])
        if not np.isfinite(left[token]):
            return rings.NO_TOKEN, rings.DAMAGED
        if token in self.stop_ids[s]:
            return token, rings.STOP_TOKEN
        if self.count[s] == 1:
            return token, rings.LENGTH
        is_full = self.pos[s] + 1 >= MAX_SEQ_LEN
        return token, rings.CONTEXT if is_full else rings.GOES_ON


def drawn(n_seqs: int, vocab_size: int, has_masks: bool, seed: int) -> Slots:
    rng = np.random.default_rng(seed)
    logits = normals(rng, n_seqs, vocab_size, spread=rng.choice([1, 8]))
    stop_ids = np.full((n_seqs, rings.MAX_STOP_IDS), -1, np.int32)
    for s in range(n_seqs):
        stop_ids[s, 3] = logits[s].argmax() if rng.random() < 0.3 else rng.integers(vocab_size)
    density = rng.choice([0.5, 0.02, 0.0])
    is_masked = (rng.random(n_seqs) < 0.6) & has_masks
    return Slots(
        pos=rng.integers(0, MAX_SEQ_LEN, n_seqs).astype(np.int32),
        count=rng.integers(0, 3, n_seqs),
        stop_ids=stop_ids,
        logits=logits,
        allowed=[rng.random(vocab_size) < density if masked else None for masked in is_masked],
    )


def mask_words(slots: Slots, n_words: int) -> Array:
    """As the host writes them: see mask.py."""
    words = np.zeros((len(slots.allowed), n_words), np.int64)
    for s, allowed in enumerate(slots.allowed):
        if allowed is not None:
            bits = np.zeros(WORD_BITS * n_words, bool)
            bits[: allowed.size] = allowed
            packed = np.packbits(bits, bitorder="little").view("<u4").astype(np.int64)
            words[s] = packed | (int(slots.pos[s]) + 1) << 32
    return words


def commands_of(slots: Slots) -> Array:
    """DECODE for each slot that shall be at work, as the host writes it."""
    commands = np.zeros((rings.N_COMMANDS, 2), np.int64)
    for number, s in enumerate(np.flatnonzero(slots.count), start=1):
        rings.put_command(commands, number, rings.DECODE, int(s), int(slots.count[s]))
    return commands


def uploaded(card: Any, slots: Slots) -> rings.DecodeState:
    """Slots that are all idle still, and the commands that give them their work."""

    def full(shape: Any, value: float, dtype: Any) -> Any:
        return card.upload(np.full(shape, value, dtype), read_only=False)

    n, vocab_size = slots.logits.shape
    shares = (n, kernels.N_BLOCKS)
    mass = np.tile(np.array([LOWEST, 0], np.float32), (*shares, 1))
    greedy = np.tile(np.array(GREEDY, np.float32), (n, 1))
    return rings.DecodeState(
        token_ids=full(n, 0, np.int32),
        pos=card.upload(slots.pos, read_only=False),
        row_pos=full(n, -7, np.int32),
        seq=card.upload(np.arange(n, dtype=np.int32)),
        n_left=full(n, 0, np.int32),
        stop_ids=card.upload(slots.stop_ids),
        control=full(rings.N_CONTROL, 0, np.int64),
        go=full(1, 0, np.int64),
        arrived=full(3, 0, np.uint64),
        best=full(shares, -1, np.int64),
        mass=card.upload(mass, read_only=False),
        partial=None,
        raw=card.upload(slots.logits),
        logits=card.poisoned((n, vocab_size)),
        sampler=SamplerState(
            settings=card.upload(greedy),
            top_k=full(n, 0, np.int32),
            seed=full(n, 0, np.uint64),
            bias_ids=full((n, 1), -1, np.int32),
            bias_values=full((n, 1), 0, np.float32),
            history=full((n, vocab_size), 0, np.int32),
        ),
        masked=card.upload(np.array([a is not None for a in slots.allowed], np.int32)),
        commands=card.upload(commands_of(slots)),
        answers=full((rings.N_ANSWERS, 2), 0, np.int64),
        n_taken=full(1, 0, np.int64),
        masks=card.upload(mask_words(slots, n_mask_words(vocab_size))),
    )


def without_turns(answers: Array) -> Array:
    """The answers by slot: blocks claim their places in the ring as they come to it."""
    bare = answers & 0xFFFFFFFF
    slots = bare[:, 0] >> rings.SLOT_SHIFT & (1 << rings.SLOT_BITS) - 1
    return bare[np.argsort(slots, kind="stable")]


def logprob_bound(logits: Array) -> float:
    """Of FP32: each logit costs the sum an exponential of 2 ulp and a product, and so does each
    merge of two sums, of which there are 5 in a warp, twice, and 4 of warps; u = 2^-24."""
    n_merged = ceil_div(logits.size, kernels.SURVEY_BLOCKS * N_THREADS) + 16
    exponents = 2.0**-24 * 2 * float(np.abs(logits).max())  # of differences, rounded
    return 6 * n_merged * (2.0**-24 + exponents) + 2.0**-21 * (1 + float(np.abs(logits).max()))


@target(
    ops=kernels,
    n_seqs=choices([3, 1, 17]),
    vocab_size=sizes(32, 5000),
    has_masks=flags(),
    seed=seeds(),
)
def program_ends(
    card: Any, ops: Any, n_seqs: int, vocab_size: int, has_masks: bool, seed: int
) -> None:
    """A step from commands to answers; nothing of idle slots changes."""
    slots = drawn(n_seqs, vocab_size, has_masks, seed)
    state = uploaded(card, slots)
    step = ops.StepEnds(card.upload(state_words(state, MAX_SEQ_LEN)[None]), n_seqs)
    ops.begin_step(step, stream=card)
    is_busy = slots.count > 0
    np.testing.assert_array_equal(card.read(state.row_pos), np.where(is_busy, slots.pos, -1))
    ops.end_step(step, stream=card)
    told = {}
    answers = card.read(state.answers, seen_as=without_turns)
    for what, value in answers[: int(is_busy.sum())].tolist():
        slot, *of_slot = rings.told(what, value)
        told[slot] = of_slot
    assert sorted(told) == np.flatnonzero(is_busy).tolist()
    history, pos, n_left = (
        card.read(buffer) for buffer in (state.sampler.history, state.pos, state.n_left)
    )
    for s in range(n_seqs):
        if s not in told:
            assert (pos[s], n_left[s], history[s].sum()) == (slots.pos[s], 0, 0)
            continue
        done, token, logprob = told[s]
        assert (token, done) == slots.expected(s)
        goes_on = done == rings.GOES_ON
        assert n_left[s] == (slots.count[s] - 1 if goes_on else 0)
        if done == rings.DAMAGED:
            continue
        assert (pos[s], history[s, token], history[s].sum()) == (
            slots.pos[s] + 1, IN_ANSWER, IN_ANSWER,
        )  # fmt: skip
        logits = slots.logits[s].astype(np.float64)
        exact = logits[token] - logits.max() - np.log(np.exp(logits - logits.max()).sum())
        assert abs(logprob - exact) <= logprob_bound(slots.logits[s])
