"""The decode program: eager and persistent give the same tokens as a loop in NumPy."""

from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as GGMLType
from program_cases import NumpyLoop, Shape, make_case

from m40llm.kernels.program import state as rings
from m40llm.kernels.program import words

F16, Q8_0, Q4_0, Q4_K, Q6_K = (GGMLType[n] for n in ("F16", "Q8_0", "Q4_0", "Q4_K", "Q6_K"))


@pytest.mark.parametrize(
    ("types", "layout"),
    [((F16,), "interleaved"), ((Q4_0, Q8_0), "half"), ((Q4_K, Q6_K), "half")],
    ids=lambda value: value if isinstance(value, str) else "+".join(t.name for t in value),
)
def test_both_forms_are_the_numpy_loop(launcher: Any, types: Any, layout: str) -> None:
    """Tokens equal; logits as near as FP32 sums and an FP16 cache, rounded at other places."""
    case = make_case(launcher, types, layout=layout)
    loop = NumpyLoop(case)
    expected = loop.greedy(5, 6)
    case.begin(5, count=6)
    case.eager()
    found = case.answers()
    case.persistent()
    found += case.answers()
    assert [token for _, token, _, _ in found] == expected
    assert [done for *_, done in found] == [0, 0, 0, 0, 0, rings.LENGTH]
    again = make_case(launcher, types, layout=layout)
    again.begin(5, count=6)
    again.persistent()
    assert again.answers() == found  # bit for bit, log-probabilities and all


def test_partial_rope_and_idle_slots(launcher: Any) -> None:
    """Slot 1 of two is idle: its row is computed, nothing of it is kept."""
    shape = Shape(n_layers=1, rope_dim=32)
    case = make_case(launcher, (F16,), layout="half", n_seqs=2, shape=shape)
    loop = NumpyLoop(case)
    launcher.write(case.state.token_ids, np.int32([7, 0]))
    launcher.write(case.state.pos, np.int32([0, 0]))
    case.command(rings.DECODE, 0, 4)
    case.persistent()
    found = case.answers()
    assert [(slot, token) for slot, token, _, _ in found] == [(0, t) for t in loop.greedy(7, 4)]
    logits = NumpyLoop(case)
    for token in (7, *[t for _, t, _, _ in found][:-1]):
        last = logits.logits(token)
    logprob = last[found[-1][1]] - np.log(np.exp(last).sum())
    assert found[-1][2] == pytest.approx(logprob, abs=1e-2)


def test_slots_decode_together(launcher: Any) -> None:
    case = make_case(launcher, (F16,), n_seqs=4, shape=Shape(n_layers=1))
    case.begin(5, 6, 7, 8, count=5)
    case.persistent()
    found = case.answers()
    for slot, first in enumerate((5, 6, 7, 8)):
        tokens = [token for s, token, _, _ in found if s == slot]
        assert tokens == NumpyLoop(case).greedy(first, 5)


@pytest.mark.parametrize(
    ("type", "n_ff", "n_blocks", "n_seqs"),
    [(Q8_0, 1536, 1, 8), (Q8_0, 1536, 2, 8), (Q8_0, 4352, 4, 8), (F16, 4352, 2, 4)],
    ids=["stages", "slices", "slices in stages", "four sequences"],
)
def test_columns_that_find_no_room_together(
    launcher: Any, type: GGMLType, n_ff: int, n_blocks: int, n_seqs: int
) -> None:
    """Eight slots leave room for 1,024 columns of x, four for 2,048; parts are of unequal size."""
    shape = Shape(n_layers=1, n_ff=n_ff, vocab_size=301)
    case = make_case(launcher, (type,), n_seqs=n_seqs, shape=shape, n_blocks=n_blocks)
    first = (5, 6, 7, 8, 9, 10, 11, 12)[:n_seqs]
    case.begin(*first, count=2)
    case.persistent()
    found = case.answers()
    for slot in range(n_seqs):
        tokens = [token for s, token, _, _ in found if s == slot]
        assert tokens == NumpyLoop(case).greedy(first[slot], 2)


def test_small_cases_go_every_way_through_a_product(launcher: Any) -> None:
    """Results left to the next instruction, results finished at once, and more than one panel."""
    code = np.asarray(launcher.read(make_case(launcher, (F16,)).program.code))
    products = code[code[:, words.OP] >= words.PRODUCT]
    fits = products[:, words.GROUPS_A_BLOCK] < products[:, words.PENDING_GROUPS]
    leaves = products[:, words.LEAVES] == 1
    assert (fits & leaves).any()
    assert (fits & ~leaves).any()
    assert (~fits).any()


def test_stop_token_and_end_of_context(launcher: Any) -> None:
    case = make_case(launcher, (F16,), shape=Shape(n_layers=1, max_seq_len=6))
    expected = NumpyLoop(case).greedy(5, 6)
    case.begin(5, count=100)
    case.persistent()
    found = case.answers()
    assert [token for _, token, _, _ in found] == expected
    assert found[-1][3] == rings.CONTEXT
    stop_ids = np.full((1, rings.MAX_STOP_IDS), -1, np.int32)
    stop_ids[0, 1] = expected[2]
    launcher.write(case.state.stop_ids, stop_ids)
    case.begin(5, count=100)
    case.persistent()
    found = case.answers()
    assert [t for _, t, _, _ in found] == expected[: expected.index(expected[2]) + 1]
    assert found[-1][3] == rings.STOP_TOKEN


def test_cancel_and_stop(launcher: Any) -> None:
    case = make_case(launcher, (F16,), shape=Shape(n_layers=1))
    case.begin(5, count=8)
    case.persistent(n_steps=2)
    assert len(case.answers()) == 2  # a launch ends after its steps
    case.command(rings.CANCEL, 0)
    case.persistent()
    assert case.answers() == [(0, rings.NO_TOKEN, 0.0, rings.CANCELLED)]
    case.persistent()
    assert case.answers() == []  # nothing to do: it ends at once
    case.begin(5, count=8)
    case.command(rings.STOP)
    case.persistent()
    assert case.answers() == []


def test_yield_ends_a_launch_and_no_more(launcher: Any) -> None:
    case = make_case(launcher, (F16,), shape=Shape(n_layers=1))
    case.begin(5, count=4)
    case.persistent()
    expected = case.answers()
    assert len(expected) == 4
    case.begin(5, count=4)
    case.command(rings.YIELD)
    case.persistent()
    assert case.answers() == []
    case.persistent()
    assert case.answers() == expected
    case.command(rings.YIELD)  # nothing runs: the next launch ends at once
    case.begin(5, count=4)
    case.eager()  # there is nothing to end in a launch of one instruction
    assert case.answers() == expected[:1]


def test_as_many_launches_as_tokens(launcher: Any) -> None:
    """Blocks that leave a launch early are not taken for such as have come to the choice."""
    whole = make_case(launcher, (F16,), n_blocks=5)
    whole.begin(5, count=6)
    whole.persistent()
    expected = whole.answers()
    parts = make_case(launcher, (F16,), n_blocks=5)
    parts.begin(5, count=6)
    found = []
    for _ in range(6):
        parts.persistent(n_steps=1)
        found += parts.answers()
    assert found == expected
    parts.begin(5, count=6)
    parts.persistent(n_steps=4)
    parts.persistent(n_steps=4)
    assert parts.answers() == expected


def test_types_of_other_widths_follow_one_another(launcher: Any) -> None:
    """Q4_0's partial results lie beyond Q8_0's x, whatever comes after what: one kernel."""
    for types in ((Q4_0, Q8_0), (Q8_0, Q4_0)):
        case = make_case(launcher, types, layout="half", shape=Shape(n_layers=1))
        case.begin(5, count=3)
        case.persistent()
        assert [token for _, token, _, _ in case.answers()] == NumpyLoop(case).greedy(5, 3)


def test_logits_that_are_no_numbers(launcher: Any) -> None:
    case = make_case(launcher, (F16,), shape=Shape(n_layers=1))
    last = case.instructions[-2]
    launcher.write(last.norm, np.full(last.norm.shape, np.nan, np.float32))
    case.begin(5, count=3)
    case.persistent()
    [(slot, token, logprob, done)] = case.answers()
    assert (slot, token, done) == (0, rings.NO_TOKEN, rings.DAMAGED)
    assert np.isnan(logprob)


def test_no_answer_is_lost_to_a_slow_reader(launcher: Any) -> None:
    """The kernel ends where the ring is full, and goes on where it was once there is room."""
    shape = Shape(n_layers=1, n_embd=256, n_ff=256, max_seq_len=8)
    case = make_case(launcher, (F16,), shape=shape, n_blocks=1)
    n_before = rings.N_ANSWERS - 4
    case.launcher.write(case.state.control, np.int64([0, n_before, 0, 0]))
    case.n_answers = n_before
    case.rings.n_taken[0] = 0  # all of them unread
    expected = NumpyLoop(case).greedy(5, 6)
    case.begin(5, count=6)
    case.persistent()
    tokens = [token for _, token, _, _ in case.answers()]
    assert 0 < len(tokens) < 6
    case.persistent()
    tokens += [token for _, token, _, _ in case.answers()]
    assert tokens == expected


@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_threads_gives_the_same(launcher: Any, seed: int) -> None:
    case = make_case(launcher.reordered(seed), (F16,), shape=Shape(n_layers=1), n_blocks=2)
    expected = NumpyLoop(case).greedy(5, 3)
    case.begin(5, count=3)
    case.persistent()
    assert [token for _, token, _, _ in case.answers()] == expected
