"""Laws of the tree: imports point one way only, functions and files stay small."""

import ast
from pathlib import Path

import pytest

import m40llm

PACKAGE = Path(m40llm.__file__).parent
LEVELS = [  # from the top down; a room may import lower levels and itself, nothing else
    {"cli", "__main__"},
    {"server"},
    {"research"},
    {"bench"},
    {"fuzz", "sm52"},
    {"llm"},
    {"engine", "text", "hub"},
    {"model"},
    {"device"},
    {"kernels", "reference"},
    {"gguf", "pictures"},
    {"errors", "progress", "whole_file"},
]
LEVEL_OF = {room: depth for depth, rooms in enumerate(LEVELS) for room in rooms}
ONLY_BLOCKS = {"kernels", "reference"}  # of what lies below: errors and gguf.blocks alone
FREE = {"testing"}  # may import anything, and is imported by tests only


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imports_of(path: Path) -> list[tuple[int, str]]:
    """Every m40llm module that the file imports, with its line, wherever the import stands."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found += [(node.lineno, n) for n in names if n.split(".")[0] == "m40llm"]
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room in FREE or room == "__init__":
        return
    assert room in LEVEL_OF, f"{path}: a room that the import law does not know"
    for line, name in imports_of(path):
        parts = name.split(".")[1:]
        target = parts[0]
        where = f"{path.name}:{line} imports m40llm.{'.'.join(parts)}"
        if target in {room, "__version__"} or room == "__main__":
            continue
        assert target in LEVEL_OF, where
        assert LEVEL_OF[target] > LEVEL_OF[room], f"{where}: imports point down only"
        if room in ONLY_BLOCKS:
            assert target == "errors" or parts[:2] == ["gguf", "blocks"], where


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_sizes(path: Path) -> None:
    """Function <= 40 lines, kernel <= 80, file <= 300; over that, the first lines say why."""
    source = path.read_text(encoding="utf-8")
    if "over the size law:" in source[:1500]:
        return
    assert source.count("\n") <= 300, f"{path.name} has {source.count(chr(10))} lines"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            limit = 80 if node.decorator_list else 40
            n_lines = (node.end_lineno or node.lineno) - node.body[0].lineno + 1
            assert n_lines <= limit, f"{path.name}:{node.lineno} {node.name} has {n_lines} lines"


def test_names_of_tests_are_unique() -> None:
    """pytest imports them by name alone: of two it would collect one."""
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
