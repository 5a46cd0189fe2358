"""What a researcher may get wrong is said in words that help, and the model answers as before."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m40llm.errors import RequestError
from m40llm.research import LLM, SteeringVector, compare, entropy, nll, plots
from m40llm.research.edits import Edits

IDS, OTHERS = [1, 20, 30, 40, 50], [1, 20, 30, 40, 60]
RAGGED = [[1], [1, 2]]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"keep": 5}, "keep: expected sites, or globs of sites, got 5"),
        ({"keep": "embd", "at": RAGGED}, "at: expected a position, a slice or several"),
        ({"keep": "embd", "at": slice("a", None)}, "at: .* is no slice of positions"),
        ({"keep": "embd", "at": slice(None, None, 0)}, "at: .* is no slice of positions"),
        ({"keep": "embd", "at": slice(50, 60)}, "at: .* has none of the 5 positions"),
    ],
)
def test_what_cannot_be_kept(asked: dict[str, Any], message: str, llm: LLM) -> None:
    with pytest.raises(RequestError, match=message):
        llm.trace(IDS, **asked)


def test_keys_of_a_trace(llm: LLM) -> None:
    with llm.trace(IDS, keep="embd") as t:
        pass
    for key in (("embd", "0"), ("embd", slice(0, 1))):
        with pytest.raises(RequestError, match="trace: expected prompt 0 to 0, got"):
            t[key]
    for key in (("embd", 0, 0), ["embd"]):
        with pytest.raises(RequestError, match="was not kept"):
            t[key]
    with pytest.raises(RequestError, match="scale: the `with` block has ended"):
        t.scale("embd", 0)


def test_a_trace_that_has_failed_may_run_again(llm: LLM) -> None:
    t = llm.trace([IDS, OTHERS], keep="embd")
    with pytest.raises(ZeroDivisionError), t:
        t.change("norm", fails_once := FailsOnce())
    assert fails_once.has_failed
    with t:
        pass
    with llm.trace([IDS, OTHERS], keep="embd") as expected:
        pass
    for n in (0, 1):
        np.testing.assert_array_equal(t["embd", n], expected["embd", n])


class FailsOnce:
    has_failed = False

    def __call__(self, x: Any) -> Any:
        if not self.has_failed:
            self.has_failed = True
            raise ZeroDivisionError
        return x


def overwrites(x: Any) -> None:
    x.fill(0)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.scale("blk.0.z", 0, head=RAGGED), "head: expected 0 to 3 at blk.0.z"),
        (lambda t: t.replace("embd", None), "replace: expected numbers, got None"),
        (lambda t: t.change("embd", overwrites), "a function that returns numbers, got None"),
        (lambda t: t.change("embd", lambda x: "no"), "a function that returns numbers, got 'no'"),
        (lambda t: t.change("embd", lambda x: 1j * x), "a function that returns numbers"),
        (lambda t: t.replace("embd", np.ones((9, 64))), r"values of shape \[5, 64\].* got \[9, 64"),
        (lambda t: t.add("embd", np.ones((3, 64)), at=[0, 1]), r"shape \[2, 64\].* got \[3, 64\]"),
    ],
)
def test_edits_of_nothing(edit: Callable[[Edits], Any], message: str, llm: LLM) -> None:
    before = llm.logits(IDS)
    with pytest.raises(RequestError, match=message), llm.trace(IDS, keep="logits") as t:
        edit(t)
    np.testing.assert_array_equal(llm.logits(IDS), before)


def test_edits_after_their_block_are_not_lost_in_silence(llm: LLM) -> None:
    with llm.edited() as edits:
        edits.scale("embd", 1)
    with pytest.raises(RequestError, match="scale: the `with` block has ended; say it inside"):
        edits.scale("embd", 0)


def test_edits_that_overflow_are_not_taken_for_a_damaged_file(llm: LLM) -> None:
    before = llm.logits(IDS)
    with llm.edited() as edits:
        edits.add("embd", np.nan)
        with pytest.raises(RequestError, match="an edit has made"):
            llm.generate(IDS)
        with pytest.raises(RequestError, match="an edit has made"):
            next(llm.steps(IDS))
    np.testing.assert_array_equal(llm.logits(IDS), before)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.patch([IDS, IDS], OTHERS, "embd", 5, 6), "prompt: .* got a list of 2"),
        (lambda m: m.patch(IDS, [OTHERS, IDS], "embd", 5, 6), "prompt: .* got a list of 2"),
        (lambda m: m.patch(IDS, OTHERS, [], 5, 6), r"sites: expected some .* got \[\]"),
        (lambda m: m.patch(IDS, OTHERS, "logits", 5, 6), "sites: expected some .* got 'logits'"),
        (lambda m: m.patch(IDS, OTHERS, None, 5, 6), "keep: expected sites"),
        (lambda m: m.lens([IDS, IDS]), "prompt: .* got a list of 2"),
        (lambda m: m.attribution([IDS, IDS], 5), "prompt: .* got a list of 2"),
        (lambda m: m.attribution(IDS, 5, at=slice(None)), "at: expected one position, got slice"),
        (lambda m: m.attribution(IDS, 5, at=[0, 1]), "at: expected one position"),
        (lambda m: compare(m, m, [IDS, IDS]), "prompt: .* got a list of 2"),
        (lambda m: compare(m, "b.gguf", IDS), "b: expected a model, .* got 'b.gguf'"),
        (lambda m: compare(None, m, IDS), "a: expected a model, .* got None"),
        (lambda m: compare(m, m, IDS, []), "sites: .* names nothing that both models have"),
        (lambda m: m.steering_vector("blk.*.z", [IDS], [OTHERS]), "site: expected one, with rows"),
        (lambda m: m.steering_vector("blk.0.pattern", [IDS], [OTHERS]), "site: expected one, with"),
        (lambda m: m.steering_vector("embd", [IDS], [OTHERS], at=[0, 1]), "at: expected one"),
        (lambda m: next(m.steps(IDS, 5)), "choose: expected a function, got 5"),
    ],
)
def test_what_cannot_be_found_out(call: Callable[[LLM], Any], message: str, llm: LLM) -> None:
    with pytest.raises(RequestError, match=message):
        call(llm)


def test_a_sampler_may_do_as_it_likes_with_its_ids(llm: LLM) -> None:
    def spoils(logits: Any, ids: list[int]) -> int:
        ids.append(10**7)
        return 5

    assert [step.token_id for step in llm.steps(IDS, spoils, 2)] == [5, 5]


def test_files_that_are_no_steering_vectors(tmp_path: Path) -> None:
    ones = np.ones(3, np.float32)
    np.save(tmp_path / "array.npy", ones)
    np.savez(tmp_path / "two_sites.npz", site=np.array([1, 2]), values=ones)
    np.savez(tmp_path / "number.npz", site="embd", values=np.float32(1))
    np.savez(tmp_path / "empty.npz", site="embd", values=ones[:0])
    named = [*tmp_path.iterdir(), tmp_path / "missing.npz", tmp_path]
    assert len(named) == 6
    for path in named:
        with pytest.raises(
            RequestError, match=r"no such file|no steering vector|expected the name"
        ):
            SteeringVector.load(path)


def test_a_steering_vector_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    vector = SteeringVector("embd", np.ones(3, np.float32))
    for path in (tmp_path / "none" / "a.npz", tmp_path):
        with pytest.raises(RequestError, match="cannot be written"):
            vector.save(path)
    vector.save(tmp_path / "a.npz")
    unwritable: Any = SteeringVector("embd", Unwritable())  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError):
        unwritable.save(tmp_path / "a.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
    np.testing.assert_array_equal(SteeringVector.load(tmp_path / "a.npz").values, vector.values)


class Unwritable:
    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise ZeroDivisionError


def test_the_cache_takes_no_nonsense(llm: LLM, loaded: Callable[..., LLM]) -> None:
    next(llm.steps(IDS))
    cache, (k, v) = llm.cache, llm.cache.read(1)
    for at in (99, "x", 1.5):
        with pytest.raises(RequestError, match=r"cache.write: expected a position, 0 to 4, or"):
            cache.write(1, k[:, 0], v[:, 0], at=at)  # type: ignore[arg-type]
    for values in (None, 1j * k):
        with pytest.raises(RequestError, match=r"cache.write: expected numbers"):
            cache.write(1, k, values)  # type: ignore[arg-type]
    smaller = loaded(n_layers=2)
    next(smaller.steps(IDS))
    with pytest.raises(RequestError, match=r"cache.restore: expected 3 layers of .* got 2 of \["):
        cache.restore(smaller.cache.fork())
    with pytest.raises(RequestError, match="expected what fork has returned, got None"):
        cache.restore(None)  # type: ignore[arg-type]
    for before, now in zip((k, v), cache.read(1), strict=True):
        np.testing.assert_array_equal(before, now)


@pytest.mark.parametrize(
    "call",
    [
        lambda: nll(np.ones((2, 5)), [1, 99]),
        lambda: nll(np.ones((2, 5)), [1, -1]),
        lambda: nll(np.ones((2, 5)), [1, 1.5]),  # type: ignore[list-item]
        lambda: nll(np.ones(2), [0, 1]),
        lambda: entropy("x"),  # type: ignore[arg-type]
        lambda: entropy(np.ones((0,))),
        lambda: plots.attention_map(np.ones((2, 3, 3)), ["a"] * 3),  # no picture in colours
        lambda: plots.attention_map(np.ones((2, 3)), ["a"] * 3),
    ],
)
def test_numbers_that_are_none(call: Callable[[], Any]) -> None:
    with pytest.raises(RequestError, match="expected"):
        call()


def test_pictures_go_where_there_is_a_folder(tmp_path: Path) -> None:
    figure = plots.nll_strip(np.ones(1), ["a", "b"])
    with pytest.raises(RequestError, match="cannot be written: there is no folder"):
        plots.save(figure, tmp_path / "none" / "nll")
    with pytest.raises(RequestError, match="expected the name of a picture"):
        plots.save(figure, ".")
    assert not list(tmp_path.iterdir())
