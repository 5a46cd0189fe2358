"""Which line of which Python file an instruction came from, out of LLVM's debug metadata."""

import re
from pathlib import PurePath
from typing import Final, NamedTuple


class Line(NamedTuple):
    """A line of a Python source file."""

    path: str
    number: int

    def __str__(self) -> str:
        return f"{PurePath(self.path).name}:{self.number}"


class Location(NamedTuple):
    """The line, then the lines of the calls that led there, innermost first; () if unknown."""

    lines: tuple[Line, ...]

    def __str__(self) -> str:
        if not self.lines:
            return "an unknown line"
        return ", called from ".join(map(str, self.lines))


UNKNOWN: Final = Location(())
_NODE = re.compile(
    r"^!(\d+) = (?:distinct )?!DI(Location|Subprogram|LexicalBlock|File)\((.*)\)$", re.M
)


class SourceLines:
    """Finds locations, and numbers those of the places that can be reported."""

    def __init__(self, module_text: str) -> None:
        self.nodes = {m[1]: m[3] for m in _NODE.finditer(module_text)}
        self.found: dict[str, Location] = {}
        self.sites: list[Location] = []
        self.numbers: dict[Location, int] = {}

    def of(self, instruction: str) -> Location:
        """Where the instruction stands in the source."""
        match = re.search(r"!dbg !(\d+)", instruction)
        if not match:
            return UNKNOWN
        if match[1] not in self.found:
            self.found[match[1]] = Location(tuple(self._chain(match[1])))
        return self.found[match[1]]

    def site(self, location: Location) -> int:
        """The number of a location, the same each time."""
        if location not in self.numbers:
            self.numbers[location] = len(self.sites)
            self.sites.append(location)
        return self.numbers[location]

    def _chain(self, node: str) -> list[Line]:
        lines = []
        while node:
            text = self.nodes.get(node, "")
            number = int(_field(text, "line") or 0)
            lines.append(Line(self._path(_field(text, "scope")), number))
            node = _field(text, "inlinedAt")
        return lines

    def _path(self, scope: str) -> str:
        file = self.nodes.get(_field(self.nodes.get(scope, ""), "file"), "")
        directory, name = (
            re.search(rf'{part}: "([^"]*)"', file) for part in ("directory", "filename")
        )
        return str(PurePath(directory[1] if directory else "", name[1] if name else "?"))


def _field(text: str, name: str) -> str:
    match = re.search(rf"\b{name}: !?(\d+)", text)
    return match[1] if match else ""
