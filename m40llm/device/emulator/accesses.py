"""Loads, stores and atomics of a coroutine: which to check, and how a poll lets others run.

Local arrays (LLVM's allocas) need no callback: their size is known, a comparison does.
"""

import re
from dataclasses import dataclass

from m40llm.device.emulator import records
from m40llm.device.emulator.host_ir import leading_type, split_top_level, type_bytes
from m40llm.device.emulator.records import THREAD, offset
from m40llm.device.emulator.source_lines import Location
from m40llm.device.emulator.writer import VALUE, Writer

_LOAD_OR_STORE = re.compile(rf"^\s*(?:{VALUE} = )?(load|store) (volatile )?(.*)$")
_POINTER = re.compile(r"^.*?, ptr ([^,]+)(?:, align (\d+))?")
_ATOMIC = re.compile(r"^\s*\S+ = (?:atomicrmw|cmpxchg) [^,]*?ptr ([^,]+), (\w+) ")


@dataclass(frozen=True)
class Access:
    """One load, store or atomic: where, how many bytes, and how."""

    pointer: str
    n_bytes: int
    flags: int
    poll: bool = False

    @property
    def atomic(self) -> bool:
        return bool(self.flags & records.ATOMIC)


def flags_of(line: str) -> int:
    """What the instruction's metadata says of its access."""
    flags = records.INVARIANT if "!invariant.load" in line else 0
    flags |= records.GLOBAL_ONLY if "!emu.global" in line else 0
    return flags | (records.SHARED_ONLY if "!emu.shared" in line else 0)


def parse_access(line: str, how: int) -> Access | None:
    """The access that this instruction makes, with flags `how`; None if it makes none."""
    if match := _LOAD_OR_STORE.match(line):
        operation, volatile, rest = match.groups()
        kind = leading_type(rest)
        pointer = _POINTER.match(rest[len(kind) :])
        assert pointer, line
        if operation == "store":
            return _access(pointer[1], kind, pointer[2], records.WRITES | how)
        flags = records.READS | how
        return _access(pointer[1], kind, pointer[2], flags, poll=bool(volatile))
    if match := _ATOMIC.match(line):
        flags = records.READS | records.WRITES | records.ATOMIC
        return _access(match[1], match[2], None, flags, poll=True)
    return None


def _access(pointer: str, kind: str, align: str | None, flags: int, poll: bool = False) -> Access:
    n_bytes = type_bytes(kind)
    log2_align = int(align or n_bytes).bit_length() - 1
    flags |= n_bytes | log2_align << records.ALIGN_SHIFT
    return Access(pointer, n_bytes, flags, poll)


def pointer_roots(body: list[str]) -> dict[str, str]:
    """Each pointer that an instruction made: an alloca's type, or the pointer it was made from."""
    pattern = re.compile(rf"^\s*({VALUE}) = (alloca|getelementptr|bitcast) (.*)$")
    roots = {}
    for line in body:
        if match := pattern.match(line):
            base = re.search(rf"ptr ({VALUE})", match[3])
            roots[match[1]] = match[3] if match[2] == "alloca" else base[1] if base else ""
    return roots


class Accesses:
    """Writes the kernel's accesses; remembers whether any of them may wait for other threads."""

    def __init__(self, roots: dict[str, str], *, checks: bool, steps: bool) -> None:
        self.roots = roots
        self.checks = checks
        self.steps = steps
        self.polls = False  # volatile loads
        self.atomics = False

    def write(self, writer: Writer, line: str, access: Access, where: Location) -> None:
        root, made_by = self._root(access.pointer)
        if root.startswith("@"):  # a constant
            writer.out.append(line)
        elif made_by:
            if self.checks and root != access.pointer:
                self._check_local(writer, access, root, made_by, where)
            writer.out.append(line)
        elif access.poll:
            self._poll(writer, line, access, where)
        else:
            if self.steps:
                self._step(writer, access, where)
            if self.checks:
                self._check(writer, access, where)
            writer.out.append(line)

    def _root(self, pointer: str) -> tuple[str, str]:
        """The pointer that offsets were added to, and the alloca that made it, if one did."""
        while pointer in self.roots:
            source = self.roots[pointer]
            if not source.startswith(("%", "@")):
                return pointer, source
            pointer = source
        return pointer, ""

    def _poll(self, writer: Writer, line: str, access: Access, where: Location) -> None:
        """Let the others run, then access, and note whether anything has changed."""
        self.atomics |= access.atomic
        self.polls |= not access.atomic
        writer.wait(str(records.YIELD), where)
        if self.checks:
            self._check(writer, access, where)
        n, kind = writer.number(), f"i{8 * min(access.n_bytes, 8)}"
        look = f"load volatile {kind}, ptr {access.pointer}"
        if access.atomic:
            writer.emit(f"%$old{n} = {look}", line.strip(), f"%$new{n} = {look}")
        else:
            writer.emit(f"%$new{n} = {look}", f"%$old{n} = add {kind} %$new{n}, 0", line.strip())
        for name in ("old", "new"):
            wide = f"zext {kind} %${name}{n} to i64" if kind != "i64" else f"add i64 %${name}{n}, 0"
            writer.emit(f"%$wide.{name}{n} = {wide}")
        writer.emit(
            f"%$at{n} = ptrtoint ptr {access.pointer} to i64",
            f"call void @emu.note_poll(ptr %$thread, i64 %$at{n}, i64 %$wide.old{n}, "
            f"i64 %$wide.new{n})",
        )

    def _step(self, writer: Writer, access: Access, where: Location) -> None:
        """Suspend before the access, so that others may come between, or it may be counted."""
        n = writer.number()
        writer.put("fault_address", access.pointer, "ptr")
        writer.put("access", str(access.flags))
        writer.emit(f"%$pause{n} = load i32, ptr %$block.pause")
        writer.wait(f"%$pause{n}", where)

    def _check(self, writer: Writer, access: Access, where: Location) -> None:
        n, site = writer.number(), writer.lines.site(where)
        writer.emit(
            f"%$fault{n} = call i32 %$check(ptr %$thread, ptr {access.pointer}, "
            f"i32 {access.flags}, i32 {site})",
            f"%$ok{n} = icmp eq i32 %$fault{n}, 0",
        )
        writer.go_on_if(f"%$ok{n}", "$faulted")

    def _check_local(
        self, writer: Writer, access: Access, root: str, made_by: str, where: Location
    ) -> None:
        """Compare the offset in a local array with its size."""
        n = writer.number()
        room = type_bytes(split_top_level(made_by)[0]) - access.n_bytes
        writer.emit(
            f"%$from{n} = ptrtoint ptr {root} to i64",
            f"%$to{n} = ptrtoint ptr {access.pointer} to i64",
            f"%$offset{n} = sub i64 %$to{n}, %$from{n}",
            f"%$inside{n} = icmp ule i64 %$offset{n}, {room}",
        )
        m = writer.number()
        writer.emit(f"br i1 %$inside{n}, label %$part{m}, label %$outside{m}")
        writer.out.append(f"$outside{m}:")
        writer.put("fault", str(records.OUT_OF_BOUNDS))
        writer.put("access", str(access.flags))
        writer.put("site", str(writer.lines.site(where)))
        writer.put("fault_address", "0", "i64")  # a local array: it has no address to report
        writer.emit("br label %$faulted")
        writer.part(f"$part{m}")


NOTE_POLL = f"""
define internal void @emu.note_poll(ptr %t, i64 %address, i64 %before, i64 %after) alwaysinline {{
 %pa = getelementptr i8, ptr %t, i64 {offset(THREAD, "poll_address")}
 %pv = getelementptr i8, ptr %t, i64 {offset(THREAD, "poll_value")}
 %pi = getelementptr i8, ptr %t, i64 {offset(THREAD, "idle")}
 %a = load i64, ptr %pa
 %v = load i64, ptr %pv
 %i = load i32, ptr %pi
 %same_place = icmp eq i64 %a, %address
 %same_value = icmp eq i64 %v, %after
 %unchanged = icmp eq i64 %before, %after
 %same = and i1 %same_place, %same_value
 %idle = and i1 %same, %unchanged
 %more = add i32 %i, 1
 %count = select i1 %idle, i32 %more, i32 0
 store i64 %address, ptr %pa
 store i64 %after, ptr %pv
 store i32 %count, ptr %pi
 ret void
}}
"""
