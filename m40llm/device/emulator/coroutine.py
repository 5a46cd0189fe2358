"""From an optimised kernel to a coroutine: every barrier, shuffle and poll suspends the thread.

LLVM's coroutine passes do the splitting; here each such call becomes a suspend point, and each
load and store is checked if asked. A block that is cut in parts keeps its name for the first;
phis that named it are told the last. Names that begin with `$` are ours: Python has none such.
"""

import re
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from m40llm.device.emulator import records
from m40llm.device.emulator.accesses import (
    NOTE_POLL,
    Accesses,
    flags_of,
    parse_access,
    pointer_roots,
)
from m40llm.device.emulator.errors import UnsupportedKernelError
from m40llm.device.emulator.host_ir import KERNEL, HostIR, split_top_level
from m40llm.device.emulator.libdevice import is_c_function
from m40llm.device.emulator.prelude import SREGS
from m40llm.device.emulator.records import BLOCK, THREAD, offset
from m40llm.device.emulator.source_lines import Location, SourceLines
from m40llm.device.emulator.writer import FIRST, VALUE, Writer

ENTRY: Final = "emu.start"

_LABEL = re.compile(r'^("[^"]+"|[-\w.$]+):')
_CALL = re.compile(rf"^\s*(?:({VALUE}) = )?(?:\w+ )?call .*?@([\w.]+)\((.*)\)[^()]*$")


@dataclass(frozen=True)
class Coroutine:
    """Text of the module with the coroutine, and what its site numbers stand for."""

    text: str
    sites: tuple[Location, ...]
    polls: bool  # has volatile loads: may wait for another block
    atomics: bool


def coroutine(text: str, host: HostIR, *, checks: bool, steps: bool) -> Coroutine:
    """Rewrite the kernel in an optimised module; `steps` suspends before every access too."""
    head, params, body, tail = _cut(text)
    result = params.pop(0)[1]  # where Numba's functions leave their value: a kernel has none
    allocas = [f" {result} = alloca i64", *(line for line in body if " = alloca " in line)]
    accesses = Accesses(pointer_roots([*allocas, *body]), checks=checks, steps=steps)
    writer = _Kernel(SourceLines(text), host, accesses)
    writer.entry(params, [re.sub(r", ![\w.]+ !\d+", "", line) for line in allocas])
    for line in body:
        if " = alloca " not in line:
            writer.line(line)
    writer.finish()
    module = re.sub(r"^!.*\n", "", head + tail, flags=re.M)  # the metadata was for the lines
    text = module + "\n" + "\n".join(writer.fixed_phis()) + "\n" + NOTE_POLL
    return Coroutine(text, tuple(writer.lines.sites), accesses.polls, accesses.atomics)


def _cut(text: str) -> tuple[str, list[tuple[str, str]], list[str], str]:
    """What stands before the kernel, its parameters (type, name), its lines, what stands after."""
    match = re.search(rf'^define [^\n]*@"?{re.escape(KERNEL)}"?\((.*)\)[^()\n]*\{{\n', text, re.M)
    assert match, "the kernel was optimised away"
    end = text.index("\n}\n", match.end())
    params = [(p.split()[0], p.split()[-1]) for p in split_top_level(match[1])]
    return text[: match.start()], params, text[match.end() : end].split("\n"), text[end + 3 :]


class _Kernel(Writer):
    """Writes the coroutine: the start, then the kernel's lines one by one, then the end."""

    def __init__(self, lines: SourceLines, host: HostIR, accesses: Accesses) -> None:
        super().__init__(lines)
        self.host = host
        self.accesses = accesses

    # ------------------------------------------------------------- the start
    def entry(self, params: list[tuple[str, str]], allocas: list[str]) -> None:
        self.out.append(f"define ptr @{ENTRY}(ptr %$thread) presplitcoroutine {{")
        self.out.append("$entry:")
        self.out += allocas
        self._pointers("thread", THREAD)
        self.emit("%$block = load ptr, ptr %$thread.block")
        self._pointers("block", BLOCK)
        self.emit(
            "%$memory = load ptr, ptr %$thread.frame",
            "%$id = call token @llvm.coro.id(i32 0, ptr null, ptr null, ptr null)",
            "%$size = call i64 @llvm.coro.size.i64()",
            "store i64 %$size, ptr %$thread.frame_bytes",
            "%$measure = icmp eq ptr %$memory, null",
            f"br i1 %$measure, label %$measured, label %{FIRST}",
        )
        self.out += ["$measured:", " ret ptr null", f"{FIRST}:"]
        self.emit(
            "%$handle = call ptr @llvm.coro.begin(token %$id, ptr %$memory)",
        )
        for name in ("args", "shared", "check"):
            self.emit(f"%${name} = load ptr, ptr %$block.{name}")
        for i, (kind, name) in enumerate(params):
            self.emit(
                f"%$arg{i} = getelementptr i8, ptr %$args, i64 {8 * i}",
                f"{name} = load {kind}, ptr %$arg{i}",
            )
        for name in SREGS:
            self._register(name)
        self.emit("%$lane = load i32, ptr %$thread.lane")
        self.emit("%$dynamic_bytes = load i32, ptr %$block.dynamic_bytes")

    def _pointers(self, name: str, record: np.dtype[Any]) -> None:
        for part in record.names or ():
            at = offset(record, part)
            self.emit(f"%${name}.{part} = getelementptr i8, ptr %${name}, i64 {at}")

    def _register(self, name: str) -> None:
        which, axis = name.split(".")
        base = "thread" if which == "tid" else "block"
        at = 4 * "xyz".index(axis)
        self.emit(
            f"%$at.{name} = getelementptr i8, ptr %${base}.{which}, i64 {at}",
            f"%${name} = load i32, ptr %$at.{name}",
        )

    # ------------------------------------------------------------- line by line
    def line(self, line: str) -> None:
        if match := _LABEL.match(line):
            self.block(match[1])
            return
        if "#dbg_" in line or not line.strip():
            return
        where, how = self.lines.of(line), flags_of(line)
        line = re.sub(r",? ![\w.]+ !\d+", "", line)
        if match := _CALL.match(line):
            self._call(line, match, where)
        elif access := parse_access(line, how):
            self.accesses.write(self, line, access, where)
        elif re.match(r"\s*ret ", line):
            self._return(line.split()[-1])
        elif line.strip() == "unreachable":  # what LLVM took for impossible must not run on
            self.emit("br label %$raised")
        else:
            self.out.append(line)

    def _return(self, status: str) -> None:
        if status == "0":
            self.emit("br label %$done")
            return
        n = self.number()
        self.emit(f"%$ok{n} = icmp eq i32 {status}, 0")
        self.emit(f"br i1 %$ok{n}, label %$done, label %$raised")

    def _call(self, line: str, match: "re.Match[str]", where: Location) -> None:
        result, name, passed = match.groups()
        operands = [part.split()[-1] for part in split_top_level(passed)] if passed else []
        register = name.removeprefix("nvvm.read.ptx.sreg.")
        if name == "emu.barrier":
            self.put("op", operands[0])
            self.put("value", operands[1])
            self.wait(str(records.BARRIER), where)
            self._result(result, "i32")
        elif name == "emu.warp":
            for part, value in zip(
                ("op", "mask", "value", "operand", "clamp"), operands, strict=True
            ):
                self.put(part, value)
            self.wait(str(records.WARP), where)
            self._result(result, "i64")
        elif name == "emu.shared":
            at = self.host.shared[int(operands[0])].offset
            self.emit(f"{result} = getelementptr i8, ptr %$shared, i64 {at}")
        elif register in SREGS:
            self.emit(f"{result} = add i32 %${register}, 0")
        elif name in {"nvvm.read.ptx.sreg.laneid", "emu.dynamic_bytes"}:
            source = "lane" if name.endswith("laneid") else "dynamic_bytes"
            self.emit(f"{result} = add i32 %${source}, 0")
        elif name.startswith("llvm.") or is_c_function(name):
            self.out.append(re.sub(r" #\d+$", "", line))
        else:
            raise UnsupportedKernelError(
                f"{where}: a call of {name}, which is recursive or has no emulated twin"
            )

    def _result(self, name: str | None, kind: str) -> None:
        if name:
            self.emit(f"{name} = load {kind}, ptr %$thread.result")

    # ------------------------------------------------------------- the end
    def finish(self) -> None:
        for label, state, fault in (
            ("done", records.DONE, 0),
            ("raised", records.FAULT, records.RAISED),
            ("faulted", records.FAULT, None),  # the check has said what and where
        ):
            self.out.append(f"${label}:")
            if fault is not None:
                self.put("fault", str(fault))
            self.put("state", str(state))
            self.emit("br label %$final")
        self.out.append("$final:")
        self.emit(
            "%$last = call i8 @llvm.coro.suspend(token none, i1 true)",
            "switch i8 %$last, label %$suspend [i8 0, label %$never i8 1, label %$suspend]",
        )
        self.out += ["$never:", " unreachable", "$suspend:"]
        self.emit("call void @llvm.coro.end(ptr %$handle, i1 false, token none)")
        self.emit("ret ptr %$handle")
        self.out.append("}")
