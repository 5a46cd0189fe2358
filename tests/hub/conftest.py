"""An empty cache folder, and an index that is a folder with one tiny wheel."""

import sys
from pathlib import Path

import pytest

from m40llm.hub import aliases

sys.path.insert(0, str(Path(__file__).parent))  # for `wheels` and `hub_server`

from wheels import alias_of, build_wheel


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder, not made yet."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("M40LLM_HOME", str(folder))
    return folder


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> aliases.Alias:
    """The alias `tiny`; the real pip finds its wheel in a folder, and nothing anywhere else."""
    index = tmp_path / "index"
    index.mkdir()
    alias = alias_of(build_wheel(index))
    for name, value in {
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(index),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(aliases.ALIASES, alias.name, alias)
    return alias
