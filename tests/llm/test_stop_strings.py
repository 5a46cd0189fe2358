"""Stop strings in text that comes in pieces, wherever the pieces are cut."""

from hypothesis import given
from hypothesis import strategies as st

from m40llm.llm.stream import StopStrings

LETTERS = st.text("ab", max_size=12)


def pushed(stop: list[str], pieces: list[str]) -> tuple[list[str], bool]:
    stops, out = StopStrings(stop), []
    for piece in pieces:
        text, found = stops.push(piece)
        out.append(text)
        if found:
            return out, True
    return [*out, stops.flush()], False


def test_straddling_two_pieces() -> None:
    assert pushed(["END"], ["one E", "ND two"]) == (["one ", ""], True)


def test_a_false_start_comes_late_but_whole() -> None:
    assert pushed(["END"], ["one E", "N", "x"]) == (["one ", "", "ENx", ""], False)


def test_the_earliest_of_several() -> None:
    assert pushed(["cd", "bc"], ["abcd"]) == (["a"], True)


@given(stop=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), pieces=st.lists(LETTERS))
def test_cut_anywhere_the_text_is_the_same(stop: list[str], pieces: list[str]) -> None:
    """What comes out is the whole text up to the stop string that ends first."""
    whole, (out, found) = "".join(pieces), pushed(stop, pieces)
    ends = [whole.find(s) + len(s) for s in stop if s in whole]
    assert found == bool(ends)
    if not found:
        assert "".join(out) == whole
        return
    text = "".join(out)
    assert any(whole.startswith(text + s) for s in stop)
    assert not any(s in text for s in stop)
