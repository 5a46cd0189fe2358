"""Every block of Python in docs/fuzzing.md runs, and its bugs are found as it says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from m40llm.fuzz import explore, load_target

PAGE = (Path(__file__).parents[2] / "docs" / "fuzzing.md").read_text(encoding="utf-8")
MINE, *REST = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def test_the_targets_are_ten_lines() -> None:
    body = MINE.split("@cuda.jit")[1].split("if __name__")[0]
    assert len([line for line in body.splitlines() if line.strip()]) <= 10


def test_the_first_runs_as_a_script(tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text(MINE, encoding="utf-8")
    subprocess.run([sys.executable, str(script)], check=True, cwd=tmp_path)


@pytest.mark.parametrize("code", REST)
def test_the_others_run(code: str, tmp_path: Path) -> None:
    file = tmp_path / "example.py"
    file.write_text(code, encoding="utf-8")
    exec(compile(code, str(file), "exec"), {"__name__": "example"})


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("np.float32(0.5)", "0.5"),
        ("i < x.size", "i < x.size - 1"),
        ("-(-n // 64)", "max(n // 64, 1)"),
    ],
)
def test_its_bugs_are_found(right: str, wrong: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE.replace(right, wrong), encoding="utf-8")
    outcome = explore(load_target(f"{tmp_path}/mine.py:step"), seed=0)
    assert outcome.failure is not None


def test_a_failure_reads_as_it_says(tmp_path: Path) -> None:
    wrong = MINE.replace("i < x.size", "i < x.size - 1")
    (tmp_path / "mine.py").write_text(wrong, encoding="utf-8")
    failure = explore(load_target(f"{tmp_path}/mine.py:step"), seed=0).failure
    assert failure is not None
    shown = failure.test.replace(str(tmp_path), "/home/you")
    begin, end = "from m40llm", "\n    )\n"
    promised = PAGE[PAGE.index("from m40llm.fuzz import check_case") :]
    assert shown[shown.index(begin) :].split(end)[0] == promised.split(end)[0]
