"""A report's file: written whole or not at all, and refused with the place where it is wrong."""

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest

from m40llm.bench.report_file import MAX_BYTES, check_place, read_report, write_report
from m40llm.errors import RequestError
from m40llm.sm52.cards import CARDS
from m40llm.testing.fake_report import fake_report


@pytest.fixture(scope="module")
def sound() -> dict[str, Any]:
    return fake_report(CARDS["m40-24"])


def test_there_and_back(sound: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_report(sound, path)
    assert read_report(path) == sound
    assert path.stat().st_mode & 0o777 == 0o644


def test_whole_or_not_at_all(sound: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    with pytest.raises(ValueError, match="JSON compliant"):
        write_report(sound | {"seconds": float("nan")}, path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_report(sound, tmp_path / "folder")
    assert [found.name for found in tmp_path.iterdir()] == ["folder"]


def test_places(tmp_path: Path) -> None:
    check_place(tmp_path / "new.json")
    (tmp_path / "old.json").touch()
    with pytest.raises(RequestError, match=r"out: .*old\.json is there already; name another file"):
        check_place(tmp_path / "old.json")
    with pytest.raises(RequestError, match="there is no such folder"):
        check_place(tmp_path / "none" / "new.json")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "is no JSON: Expecting value"),
        (b"\xff\xfe", "is no JSON: it is no UTF-8"),
        (b"{" * 100_000, "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b"[]", "is no report of `m40llm bench report`"),
        (b'{"format": "other", "version": 1}', "is no report of `m40llm bench report`"),
        (b'{"a": NaN}', "is no JSON: NaN is no number of JSON"),
        (
            b'{"format": "m40llm card report", "version": 2}',
            "has version 2 of the format, this m40llm reads 1",
        ),
        (
            b'{"format": "m40llm card report", "version": "1"}',
            "has version '1' of the format, this m40llm reads 1",
        ),
        (
            b'{"format": "m40llm card report", "version": 1}',
            "measured: the file: the key 'is_complete' is missing",
        ),
    ],
)
def test_files_that_are_none(text: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(text)
    with pytest.raises(RequestError) as caught:
        read_report(path)
    assert words in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"measured: cannot read .*none\.json: No such file"):
        read_report(tmp_path / "none.json")
    with pytest.raises(RequestError, match=r"measured: cannot read .*: Is a directory"):
        read_report(tmp_path)
    with (tmp_path / "large.json").open("wb") as file:
        os.truncate(file.fileno(), MAX_BYTES + 1)
    with pytest.raises(RequestError, match="is too large for a report"):
        read_report(tmp_path / "large.json")


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("is_complete", 1, "is_complete: expected true or false, got 1"),
        ("card", [], "card: expected an object, got []"),
        ("card.name", "a\x1b[31m", r"card.name: expected printable text, got 'a\x1b[31m'"),
        ("card.n_sms", -1, "card.n_sms: expected a whole number from 0, got -1"),
        ("card.n_sms", 24.0, "card.n_sms: expected a whole number from 0, got 24.0"),
        ("card.n_sms", True, "card.n_sms: expected a number, got True"),
        ("card.memory_bytes", 10**400, "card.memory_bytes: expected a whole number from 0, got 1"),
        ("ceilings.read_gb_per_s", 0, "ceilings.read_gb_per_s: expected a number above 0, got 0"),
        ("ceilings.read_gb_per_s", 10**400, "ceilings.read_gb_per_s: expected a number above 0"),
        ("models", {}, "models: expected a list, got {}"),
        ("models.0.shape", "9b", "models[0].shape: expected one of tiny, 135m, 1b"),
        ("models.0.type", "Q9", "models[0].type: expected one of F32, F16"),
        ("models.0.max_seq_len", 10**12, "models[0].max_seq_len: expected up to 131072"),
        ("models.0.max_tokens", 0, "models[0].max_seq_len: expected up to 131072"),
        ("models.0.max_tokens", 65, "and max_tokens within it, got (65, 64)"),
        ("models.0.prefill", 3, "models[0].prefill: expected an object, got 3"),
        ("models.0.steps.0.step", "sleep", "models[0].steps[0].step: expected decode or prefill"),
        ("models.0.steps.0.n_context", 64, "steps[0]: expected tokens that the context holds"),
        ("models.0.steps.1.n_tokens", 0, "steps[1]: expected tokens that the context holds, got 0"),
        ("models.0.launches.3.us", "7", "models[0].launches[3].us: expected a number, got '7'"),
        ("models.0.launches.3.us", 0.0, "launches[3].us: expected a number above 0, got 0.0"),
        ("models.0.launches.0.grid", [1, None], "launches[0].grid[1]: expected a number, got None"),
        ("skipped.0", "all", "skipped[0]: expected an object, got 'all'"),
        ("failed", "x" * 99, "failed: expected a list, got '" + "x" * 56 + "..."),
    ],
)
def test_the_place_is_named(
    place: str, value: Any, words: str, sound: dict[str, Any], tmp_path: Path
) -> None:
    document = copy.deepcopy(sound)
    *keys, last = place.split(".")
    at: Any = document
    for key in keys:
        at = at[int(key) if key.isdigit() else key]
    at[int(last) if last.isdigit() else last] = value
    path = tmp_path / "report.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(RequestError) as caught:
        read_report(path)
    assert words in str(caught.value)
    assert str(caught.value).startswith("measured: ")
