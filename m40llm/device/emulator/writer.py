"""Writes the lines of a coroutine: fields of its records, suspend points, blocks in parts."""

import re
from typing import Final

from m40llm.device.emulator.source_lines import Location, SourceLines

VALUE: Final = r'[%@](?:"[^"]+"|[-\w.$]+)'
FIRST: Final = "$first"  # the part of the coroutine in which the kernel begins


class Writer:
    """A function body in the making. Names that begin with `$` are ours: Python has none such."""

    def __init__(self, lines: SourceLines) -> None:
        self.lines = lines
        self.out: list[str] = []
        self.label = ""  # the kernel's block that is being written
        self.last_part: dict[str, str] = {}  # of each of the kernel's blocks
        self._n = 0

    def number(self) -> int:
        """A number for new names."""
        self._n += 1
        return self._n

    def emit(self, *lines: str) -> None:
        self.out += [" " + line for line in lines]

    def block(self, label: str) -> None:
        """Begin one of the kernel's blocks; the first goes on where the coroutine's start ends."""
        if self.label:
            self.out.append(f"{label}:")
        self.last_part[label] = label if self.label else FIRST
        self.label = label

    def part(self, label: str) -> None:
        """Go on with the kernel's block in a new part of it."""
        self.out.append(f"{label}:")
        self.last_part[self.label] = label

    def put(self, field: str, value: str, kind: str = "i32") -> None:
        """Store into a field of the thread's record."""
        self.emit(f"store {kind} {value}, ptr %$thread.{field}")

    def suspend(self, state: str) -> None:
        """Return to the scheduler, and go on from here when it resumes the thread."""
        n = self.number()
        self.put("state", state)
        self.emit(
            f"%$s{n} = call i8 @llvm.coro.suspend(token none, i1 false)",
            f"switch i8 %$s{n}, label %$suspend [i8 0, label %$part{n} i8 1, label %$suspend]",
        )
        self.part(f"$part{n}")

    def wait(self, state: str, where: Location) -> None:
        """Suspend at a place that the scheduler and error texts can name."""
        self.put("site", str(self.lines.site(where)))
        self.suspend(state)

    def go_on_if(self, condition: str, otherwise: str) -> None:
        """Branch to `otherwise` unless the condition (an i1) holds."""
        n = self.number()
        self.emit(f"br i1 {condition}, label %$part{n}, label %{otherwise}")
        self.part(f"$part{n}")

    def fixed_phis(self) -> list[str]:
        """The lines, with the phis told which part of a block now branches to them."""
        return [self._fixed(line) if " = phi " in line else line for line in self.out]

    def _fixed(self, line: str) -> str:
        def rename(match: re.Match[str]) -> str:
            return f", %{self.last_part.get(match[1], match[1])} ]"

        return re.sub(r', %("[^"]+"|[-\w.$]+) \]', rename, line)
