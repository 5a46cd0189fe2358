"""The package itself: cheap to import, light to install."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import m40llm

HEAVY = {"numpy", "numba", "gguf", "tokenizers", "sentencepiece", "jinja2", "rich", "typer"}
CUDA = {"numba.cuda", "cuda.bindings", "cuda.core"}  # plain "cuda" comes with their .pth file


def modules_after(code: str) -> set[str]:
    """Modules loaded by a fresh interpreter after running the code."""
    shown = f"{code}; import sys; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", shown], capture_output=True, text=True, check=True)
    return set(ran.stdout.split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not modules_after("import m40llm") & (HEAVY | CUDA)


def test_the_names_load_when_asked_for_and_cuda_never() -> None:
    loaded = modules_after("from m40llm import LLM, SamplingParams")
    assert "numpy" in loaded
    assert not loaded & CUDA


def test_text_alone_needs_no_numba() -> None:
    assert not modules_after("from m40llm.text import tokenizer_from_gguf") & {"numba", "jinja2"}


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = m40llm.nonsense


def test_version_is_that_of_the_metadata() -> None:
    project = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())
    assert project["project"]["version"] == m40llm.__version__
