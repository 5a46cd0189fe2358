"""From Numba's NVPTX IR to IR of the host: same functions, other names for what is the GPU's.

Pointers lose their types and address spaces (LLVM 22 knows only `ptr`), `llvm.nvvm.*` become
`nvvm.*` (so that LLVM does not take them for its own), the few lines of inline assembly that
Numba emits become calls, and shared arrays become offsets into the block's shared memory.
All these names are defined in prelude.py and libdevice.py.
"""

import re
from dataclasses import dataclass
from typing import Final

import llvmlite.binding as llvm

from m40llm.device.emulator.errors import UnsupportedKernelError
from m40llm.device.emulator.prelude import ASSEMBLY_TWINS, assembly_declarations

KERNEL: Final = "emu.kernel"
SHARED_GUARD: Final = 256  # bytes that belong to nobody after each shared array
TRIPLE: Final = llvm.get_process_triple()
SHARED_ALIGN: Final = 128  # as many bytes as shared memory has banks, times 4


@dataclass(frozen=True)
class SharedArray:
    """One `cuda.shared.array`: its bytes (0 for the dynamic one) and its place in the block."""

    n_bytes: int
    offset: int


@dataclass(frozen=True)
class HostIR:
    """Texts of the kernel's module and of its device functions, ready to parse and link."""

    modules: tuple[str, ...]
    shared: tuple[SharedArray, ...]

    @property
    def static_bytes(self) -> int:
        """Where dynamic shared memory begins."""
        ends = [s.offset + _padded(s.n_bytes) for s in self.shared if s.n_bytes]
        return max(ends, default=0)


def host_ir(texts: list[str]) -> HostIR:
    """Rewrite what Numba emitted: the kernel's module first, then one a device function."""
    names = _Names()
    names.kernel(texts[0])
    texts = [names.rename(text) for text in texts]
    shared = _shared_layout(texts)
    return HostIR(tuple(_rewrite(text) for text in texts), shared)


class _Names:
    """Names that are the same in every process, so that compiled code can be cached."""

    def __init__(self) -> None:
        self.new: dict[str, str] = {}
        self.count = {"function": 0, "shared": 0}

    def kernel(self, text: str) -> None:
        """The first function that the first module defines is the kernel."""
        match = re.search(r'^define [^@]*@"([^"]+)"', text, re.M)
        assert match, "Numba emitted no function"
        self.new[match[1]] = KERNEL

    def rename(self, text: str) -> str:
        text = re.sub(r'^; ModuleID.*$|linkageName: "[^"]*", ', "", text, flags=re.M)
        return re.sub(r'@"(_ZN[^"]*|_cudapy_smem_[^"]*)"', self._rename_one, text)

    def _rename_one(self, match: re.Match[str]) -> str:
        name = match[1]
        if name not in self.new:
            kind = "shared" if name.startswith("_cudapy_smem") else "function"
            self.new[name] = f"emu.{kind}.{self.count[kind]}"
            self.count[kind] += 1
        return f'@"{self.new[name]}"'


_SHARED_ARRAY = re.compile(
    r'^@"emu\.shared\.(\d+)" = (external )?addrspace\(3\) global (.+?)(?: undef)?, align \d+$',
    re.M,
)


def _shared_layout(texts: list[str]) -> tuple[SharedArray, ...]:
    """Places for the static arrays, one after the other, the dynamic one behind them all."""
    sizes: dict[int, int] = {}
    for text in texts:
        for index, external, kind in _SHARED_ARRAY.findall(text):
            sizes[int(index)] = 0 if external else type_bytes(kind)
    arrays, offset = [], 0
    for index in sorted(sizes):
        arrays.append(SharedArray(sizes[index], offset))
        offset += _padded(sizes[index]) if sizes[index] else 0
    return tuple(a if a.n_bytes else SharedArray(0, offset) for a in arrays)


def _padded(n_bytes: int) -> int:
    return -(-(n_bytes + SHARED_GUARD) // SHARED_ALIGN) * SHARED_ALIGN


_SCALAR_BYTES = {"i1": 1, "i8": 1, "i16": 2, "i32": 4, "i64": 8, "half": 2, "float": 4}
_SCALAR_BYTES |= {"double": 8, "ptr": 8}


def type_bytes(kind: str) -> int:
    """Bytes of an LLVM type: a number, a pointer, or an array, vector or flat struct of them."""
    kind = kind.strip()
    if kind in _SCALAR_BYTES:
        return _SCALAR_BYTES[kind]
    if match := re.fullmatch(r"[\[<](\d+) x (.+)[\]>]", kind):
        return int(match[1]) * type_bytes(match[2])
    if match := re.fullmatch(r"\{(.+)\}", kind):
        parts = [type_bytes(part) for part in split_top_level(match[1])]
        offset = 0
        for part in parts:  # each part is aligned to its own size, at most to 8
            align = min(part, 8) or 1
            offset = -(-offset // align) * align + part
        return offset
    if kind.endswith("*"):
        return 8
    raise UnsupportedKernelError(f"a value of the LLVM type {kind} is loaded or stored")


def leading_type(text: str) -> str:
    """The LLVM type that the text begins with."""
    depth = 0
    for i, char in enumerate(text):
        depth += (char in "[{<") - (char in "]}>")
        if not depth and char in ", ":
            return text[:i]
    return text


def split_top_level(text: str) -> list[str]:
    """Split at the commas that stand in no bracket."""
    parts, depth, start = [], 0, 0
    for i, char in enumerate(text):
        if char in "([{<":
            depth += 1
        elif char in ")]}>":
            depth -= 1
        elif char == "," and not depth:
            parts.append(text[start:i].strip())
            start = i + 1
    return [*parts, text[start:].strip()]


_POINTEE = (
    r'(?:i\d+|float|double|half|ptr|void|%"[^"]+"'
    r"|\[[^\[\]]*\]|\{(?:[^{}]|\{[^{}]*\})*\}|<[^<>]*>)"
)
_POINTER = re.compile(r"(?<![\w.])" + _POINTEE + r"\*")
_ASSEMBLY = re.compile(r'asm\s+(?:sideeffect\s+)?"([^"]*)", "[^"]*"')

_WIDE_LOAD = re.compile(  # 8 or 16 bytes of global memory, by whatever way through the caches
    r'^ *%"?([\w.]+)"? = (?:tail )?call \{\s*(i32(?:, i32)*)\s*\} asm *(?:sideeffect )?'
    r'"ld\.global\.(?:cs\.)?(?:nc\.)?v[24]\.u32 \{[$\d,]+\}, \[\$[24]\];", "[^"]*"'
    r"\s*\(i64 (%[^)]*)\)(.*)$",
    re.M,
)

# A load or store of kernels/intrinsics.py: its pointer names the address space.
_IN_A_SPACE = re.compile(r"^ *(?:\S+ = load|store) [^\n]*\baddrspace\(([13])\)\*[^\n]*$", re.M)
SPACES = {"1": "!emu.global", "3": "!emu.shared"}  # metadata: accesses.py reads it


def _with_space(match: re.Match[str]) -> str:
    return f"{match[0]}, {SPACES[match[1]]} !{{}}"


def _untyped(line: str) -> str:
    """The line with `ptr` for every pointer, from the innermost outwards."""
    before = ""
    while before != line:
        before, line = line, _POINTER.sub("ptr", line)
    return line


def _rewrite(text: str) -> str:
    text = re.sub(r"^target triple = .*$", f'target triple = "{TRIPLE}"', text, flags=re.M)
    text = re.sub(r"^target datalayout = .*$", "", text, flags=re.M)
    text = re.sub(r"^@.* = common global .* null$", "", text, flags=re.M)  # NumbaEnv: not used
    text = _SHARED_ARRAY.sub("", text)
    text = _IN_A_SPACE.sub(_with_space, text)
    text = re.sub(r" ?addrspace\(\d\)", "", text)
    text = "\n".join(_untyped(line) if "*" in line else line for line in text.split("\n"))
    text = re.sub(
        r'addrspacecast ptr @"emu\.shared\.(\d+)" to ptr', r"call ptr @emu.shared(i32 \1)", text
    )
    text = text.replace("addrspacecast", "bitcast")
    text = re.sub(r'@"?llvm\.nvvm\.([\w.]+)"?', r"@nvvm.\1", text)
    text = _WIDE_LOAD.sub(_plain_load, text)
    text = _ASSEMBLY.sub(_assembly_twin, text)
    # Loops stay loops: a call of memset would pass the access check by.
    text = re.sub(r"^(define .*\))", r'\1 "no-builtins"', text, flags=re.M)
    text = re.sub(r"^(define .*)\bnoinline\b", r"\1", text, flags=re.M)  # one coroutine a thread
    text = re.sub(r'^(define (?!.*@"emu\.kernel").*\))', r"\1 alwaysinline", text, flags=re.M)
    shared = "declare ptr @emu.shared(i32) memory(none) nounwind willreturn\n"
    return f"{text}\n{shared}{assembly_declarations()}"


def _plain_load(match: re.Match[str]) -> str:
    """A wide load in assembly as a load that is checked like any other."""
    name, words, address = match[1], match[2], match[3]
    n, rest = len(words.split(",")), re.sub(r" #\d+", "", match[4])
    lines = [
        f'  %"{name}.at" = inttoptr i64 {address} to ptr',
        f'  %"{name}.all" = load <{n} x i32>, ptr %"{name}.at", align {4 * n}{rest}, '
        "!emu.global !{}",
    ]
    before = "undef"
    for i in range(n):
        after = f'%"{name}"' if i == n - 1 else f'%"{name}.with{i}"'
        lines += [
            f'  %"{name}.{i}" = extractelement <{n} x i32> %"{name}.all", i32 {i}',
            f'  {after} = insertvalue {{{words}}} {before}, i32 %"{name}.{i}", {i}',
        ]
        before = after
    return "\n".join(lines)


def _assembly_twin(match: re.Match[str]) -> str:
    twin = ASSEMBLY_TWINS.get(match[1].strip())
    if twin is None:
        raise UnsupportedKernelError(f"inline assembly without an emulated twin: {match[1]!r}")
    return f"@{twin}"
