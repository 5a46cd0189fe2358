"""JsonFollower against Python's own reader of JSON."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from m40llm.llm.tools.json_text import JsonFollower

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
FINITE = SCALARS.filter(lambda value: value not in (float("inf"), float("-inf")))
VALUES = st.recursive(
    FINITE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
CONTAINERS = VALUES.filter(lambda value: isinstance(value, list | dict | str))
ALPHABET = '{}[]":,\\ 01.-+eEtrufalsn\n\t'


def follow(text: str) -> bool:
    """Whether it is whole at the text's end, every character having been right."""
    follower = JsonFollower()
    return all(follower.take(char) for char in text) and follower.is_whole


def is_json(text: str) -> bool:
    """Of the kind that the follower is for: no scalar but a string, no space around it."""
    try:
        return isinstance(json.loads(text), dict | list | str) and text == text.strip(" \t\n\r")
    except ValueError:
        return False


@given(CONTAINERS, st.booleans(), st.sampled_from([None, 0, 2]))
def test_what_is_written_is_whole_at_its_end(value: object, ascii: bool, indent: int) -> None:
    text = json.dumps(value, ensure_ascii=ascii, indent=indent)
    follower = JsonFollower()
    for char in text[:-1]:
        assert follower.take(char)
        assert not follower.is_whole
    assert follower.take(text[-1])
    assert follower.is_whole
    assert not follower.take(" ")


@given(CONTAINERS.map(json.dumps), st.data())
def test_a_changed_character_is_judged_as_python_does(text: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(text) - 1))
    changed = text[:at] + data.draw(st.text(ALPHABET, max_size=2)) + text[at + 1 :]
    assert follow(changed) == is_json(changed)


@given(st.text(ALPHABET, max_size=12))
@example('{"a":1,}')
@example("[1 2]")
@example("[-]")
@example("[1.]")
@example("[01]")
@example("[1e]")
@example("[tru]")
@example("[]]")
@example('"\\u12G4"')
def test_any_text_is_judged_as_python_does(text: str) -> None:
    assert follow(text) == is_json(text)


@pytest.mark.parametrize("text", ['"\\x', '"\n', "1", "t", "}", "]", ",", '{"a"}', "{1", "[,"])
def test_refused_at_the_first_wrong_character(text: str) -> None:
    follower = JsonFollower()
    assert all(follower.take(char) for char in text[:-1])
    assert not follower.take(text[-1])
