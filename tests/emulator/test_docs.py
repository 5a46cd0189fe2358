"""The example of docs/emulator.md runs, and its bug is reported as it says."""

import re
from pathlib import Path

import pytest

from m40llm.device.emulator.errors import OutOfBoundsError

PAGE = Path(__file__).parents[2] / "docs" / "emulator.md"


def example() -> str:
    match = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert match
    return match[1]


def run(code: str, folder: Path) -> None:
    file = folder / "example.py"
    file.write_text(code, encoding="utf-8")
    exec(compile(code, str(file), "exec"), {})


def test_the_example_runs(tmp_path: Path) -> None:
    run(example(), tmp_path)


def test_its_bug_is_reported_as_the_page_says(tmp_path: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    promised = re.search(r"OutOfBoundsError: (.*?)```", page, re.S)
    assert promised
    with pytest.raises(OutOfBoundsError) as caught:
        run(example().replace("i < x.size", "i <= x.size"), tmp_path)
    assert " ".join(promised[1].split()) == str(caught.value)
