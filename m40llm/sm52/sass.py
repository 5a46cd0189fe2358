"""The text that nvdisasm writes, as instructions and loops, and what the loop that counts holds.

    .L_3:
            /*0048*/              {  LDG.E.128 R4, [R2] ;
            /*0050*/                 FFMA R0, R4, R8, R0 }
            /*0058*/           @P0  BRA `(.L_3) ;

Maxwell packs three instructions and a word that steers them into 32 bytes; nvdisasm prints that
word as a bare number, or not at all: no line without an opcode is taken. A loop is what lies
between a label and a branch back to it.

**The hot loop** is, of the loops that contain no other, the one with most FFMAs; without any, the
one that loads most bytes; then the shortest, since what is longer looks for edges, too. A kernel
may have several that count (scores, then weights times V): the hot one stands for all.
"""

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Final

_LABEL: Final = re.compile(r"^\s*\.(L_\w+):")
_CODE: Final = re.compile(
    r"/\*([0-9a-f]{4,})\*/\s+\{?\s*(?:@(!?U?P[\dT]+)\s+)?([A-Z][A-Z0-9_.]*)\s*(.*?)\s*[;}]"
)
_TARGET: Final = re.compile(r"`\(\.(L_\w+)\)")
_WIDTH: Final = re.compile(r"\.(8|16|32|64|128)\b")
_BRANCHES: Final = ("BRA", "JMP", "BRX")
_DEFAULT_BYTES: Final = 4


@dataclass(frozen=True)
class Instruction:
    """opcode with its modifiers: "LDG.E.128"; target: the label that it branches to."""

    address: int
    opcode: str
    operands: str = ""
    predicate: str | None = None
    target: str | None = None

    @property
    def name(self) -> str:
        return self.opcode.partition(".")[0]

    @property
    def n_bytes(self) -> int:
        """That a thread loads or stores, of an instruction that does."""
        if match := re.search(r"\.[US](8|16)\b", self.opcode):
            return int(match[1]) // 8
        match = _WIDTH.search(self.opcode)
        return int(match[1]) // 8 if match else _DEFAULT_BYTES


@dataclass(frozen=True)
class Loop:
    """Instructions from a label to the last branch back to it, which is one of them."""

    body: tuple[Instruction, ...]

    @property
    def begin(self) -> int:
        return self.body[0].address

    @property
    def end(self) -> int:
        return self.body[-1].address

    @cached_property
    def mix(self) -> Counter[str]:
        """How many of each opcode, without modifiers."""
        return Counter(one.name for one in self.body)

    @property
    def n_ffma(self) -> int:
        return self.mix["FFMA"]

    @property
    def ffma_share(self) -> float:
        return self.n_ffma / len(self.body)

    @property
    def loaded_bytes(self) -> int:
        """From device memory, by a thread in one round."""
        return sum(one.n_bytes for one in self.body if one.name in ("LDG", "LD"))

    def contains(self, other: "Loop") -> bool:
        return self is not other and self.begin <= other.begin and other.end <= self.end


@dataclass(frozen=True)
class Listing:
    """A kernel's code, without what pads its end."""

    instructions: tuple[Instruction, ...]
    loops: tuple[Loop, ...]

    @cached_property
    def inner_loops(self) -> tuple[Loop, ...]:
        """Those that contain no other."""
        return tuple(a for a in self.loops if not any(a.contains(b) for b in self.loops))

    @cached_property
    def hot_loop(self) -> Loop | None:
        """See above; None where there is no loop."""
        return max(self.inner_loops, key=_heat, default=None)

    @cached_property
    def straight(self) -> tuple[Instruction, ...]:
        """What is in none of the inner loops."""
        looped = {one.address for loop in self.inner_loops for one in loop.body}
        return tuple(one for one in self.instructions if one.address not in looped)


def _heat(loop: Loop) -> tuple[int, int, int]:
    return loop.n_ffma, loop.loaded_bytes, -len(loop.body)


def parse(text: str) -> Listing:
    """nvdisasm's listing of a cubin with one kernel."""
    code: list[Instruction] = []
    at_label: dict[str, int] = {}  # index of the instruction behind it
    for line in text.splitlines():
        if label := _LABEL.match(line):
            at_label[label[1]] = len(code)
        elif found := _CODE.search(line):
            address, predicate, opcode, operands = found.groups()
            target = _TARGET.search(operands)
            label_of = target[1] if target else None
            code.append(Instruction(int(address, 16), opcode, operands, predicate, label_of))
    loops = _loops(code, at_label)
    while code and (code[-1].name == "NOP" or at_label.get(code[-1].target or "") == len(code) - 1):
        code.pop()  # what pads the end: NOPs, and a branch to itself
    return Listing(tuple(code), loops)


def _loops(code: list[Instruction], at_label: dict[str, int]) -> tuple[Loop, ...]:
    """One for each label that is branched back to."""
    last: dict[int, int] = {}  # of a loop's first instruction: its last one
    for at, one in enumerate(code):
        if one.name in _BRANCHES and one.target in at_label:
            first = at_label[one.target]
            if first < at:  # a branch to itself pads the end
                last[first] = at
    return tuple(Loop(tuple(code[first : end + 1])) for first, end in sorted(last.items()))
