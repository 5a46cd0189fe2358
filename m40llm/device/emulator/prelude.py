"""The GPU's own functions, in LLVM IR of the host: registers, barriers, warp operations, atomics.

What must suspend a thread is left as a call of `emu.barrier` or `emu.warp`, which coroutine.py
turns into suspend points. `convergent` keeps LLVM from moving such calls across branches.
"""

import re
from typing import Final

from m40llm.device.emulator.records import (
    ACTIVE_MASK,
    BAR_AND,
    BAR_OR,
    BAR_POPC,
    BAR_SYNC,
    VOTE_ALL,
    WARP_SYNC,
)
from m40llm.kernels.hints import PINNED, PREFETCH

SREGS: Final = tuple(f"{n}.{d}" for n in ("tid", "ntid", "ctaid", "nctaid") for d in "xyz")

_INLINE = "alwaysinline nounwind"
_PURE = "memory(none) nounwind willreturn"


def _function(head: str, body: str) -> str:
    return f"define linkonce_odr {head} {_INLINE} {{\n{body}\n}}\n"


def _registers() -> str:
    reads = [f"declare i32 @nvvm.read.ptx.sreg.{name}() {_PURE}\n" for name in SREGS]
    reads.append(f"declare i32 @nvvm.read.ptx.sreg.laneid() {_PURE}\n")
    reads.append(f"declare i32 @emu.dynamic_bytes() {_PURE}\n")
    reads.append(_function("i32 @nvvm.read.ptx.sreg.warpsize()", " ret i32 32"))
    lane_mask = " %l = call i32 @nvvm.read.ptx.sreg.laneid()\n %b = shl i32 1, %l\n"
    reads.append(
        _function("i32 @asm.lanemask_lt()", lane_mask + " %m = sub i32 %b, 1\n ret i32 %m")
    )
    return "".join(reads)


def _barriers() -> str:
    text = "declare i32 @emu.barrier(i32, i32) convergent nounwind\n"
    sync = f" call i32 @emu.barrier(i32 {BAR_SYNC}, i32 0)\n ret void"
    text += _function("void @nvvm.barrier0()", sync)
    for name, mode in (("popc", BAR_POPC), ("and", BAR_AND), ("or", BAR_OR)):
        body = f" %r = call i32 @emu.barrier(i32 {mode}, i32 %value)\n ret i32 %r"
        text += _function(f"i32 @nvvm.barrier0.{name}(i32 %value)", body)
    for name in ("gl", "cta", "sys"):
        text += _function(f"void @nvvm.membar.{name}()", " fence seq_cst\n ret void")
    return text


_UNPACK = """ %low = trunc i64 %r to i32
 %high = lshr i64 %r, 32
 %bit = trunc i64 %high to i1
 %a = insertvalue {i32, i1} undef, i32 %low, 0
 %b = insertvalue {i32, i1} %a, i1 %bit, 1
 ret {i32, i1} %b"""


def _warp_operations() -> str:
    text = "declare i64 @emu.warp(i32, i32, i32, i32, i32) convergent nounwind\n"
    call = " %r = call i64 @emu.warp(i32 %mode, i32 %mask, i32 %v, i32 %lane, i32 %clamp)\n"
    head = "{i32, i1} @nvvm.shfl.sync.i32(i32 %mask, i32 %mode, i32 %v, i32 %lane, i32 %clamp)"
    text += _function(head, call + _UNPACK)
    vote = f""" %op = add i32 %mode, {VOTE_ALL}
 %v = zext i1 %predicate to i32
 %r = call i64 @emu.warp(i32 %op, i32 %mask, i32 %v, i32 0, i32 0)
"""
    head = "{i32, i1} @nvvm.vote.sync(i32 %mask, i32 %mode, i1 %predicate)"
    text += _function(head, vote + _UNPACK)
    sync = f" call i64 @emu.warp(i32 {WARP_SYNC}, i32 %mask, i32 0, i32 0, i32 0)\n ret void"
    text += _function("void @nvvm.bar.warp.sync(i32 %mask)", sync)
    active = f""" %r = call i64 @emu.warp(i32 {ACTIVE_MASK}, i32 -1, i32 0, i32 0, i32 0)
 %m = trunc i64 %r to i32
 ret i32 %m"""
    return text + _function("i32 @asm.activemask()", active)


def _atomic(name: str, kind: str, operation: str, setup: str = "", value: str = "%v") -> str:
    body = (
        f"{setup} %old = atomicrmw {operation} ptr %p, {kind} {value} monotonic\n ret {kind} %old"
    )
    return _function(f"{kind} @{name}(ptr %p, {kind} %v)", body)


def _atomics() -> str:
    """Numba's atomics that are not LLVM instructions already."""
    text = ""
    for kind, short in (("float", "f32"), ("double", "f64")):
        text += _atomic(f"nvvm.atomic.load.add.{short}.p0{short}", kind, "fadd")
        text += _atomic(f"___numba_atomic_{kind}_add", kind, "fadd")
        text += _atomic(f"___numba_atomic_{kind}_sub", kind, "fsub")
        for name, worst in (("max", "0xFFF0000000000000"), ("min", "0x7FF0000000000000")):
            # A NaN in memory stays, a NaN value changes nothing.
            no_nan = f""" %nan = fcmp uno {kind} %v, %v
 %w = select i1 %nan, {kind} {worst}, {kind} %v
"""
            full = f"___numba_atomic_{kind}_{name}"
            text += _atomic(full, kind, f"f{name}imum", no_nan, "%w")
            text += _atomic(f"___numba_atomic_{kind}_nan{name}", kind, f"f{name}")
    for name in ("inc", "dec"):
        text += _atomic(f"nvvm.atomic.load.{name}.32.p0i32", "i32", f"u{name}_wrap")
        text += _atomic(f"___numba_atomic_u64_{name}", "i64", f"u{name}_wrap")
    return text


# ------------------------------------------------------------- inline assembly with a twin
ASSEMBLY_TWINS: Final = {
    "activemask.b32 $0;": "asm.activemask",
    "mov.u32 $0, %lanemask_lt;": "asm.lanemask_lt",
    "mov.u32 $0, %dynamic_smem_size;": "emu.dynamic_bytes",
    "cvt.f32.f16 $0, $1;": "asm.cvt.f32.f16",
    "cvt.f64.f16 $0, $1;": "asm.cvt.f64.f16",
    "cvt.rn.f16.f32 $0, $1;": "asm.cvt.f16.f32",
    "cvt.rn.f16.f64 $0, $1;": "asm.cvt.f16.f64",
    "ld.volatile.global.u32 $0, [$1];": "asm.load_volatile",
    PREFETCH: "asm.prefetch",
    PINNED: "asm.pinned",
}
for _bits in (8, 16, 32, 64):
    for _sign in "su":
        ASSEMBLY_TWINS[f"cvt.rni.{_sign}{_bits}.f16 $0, $1;"] = f"asm.cvt.{_sign}{_bits}.f16"
        ASSEMBLY_TWINS[f"cvt.rn.f16.{_sign}{_bits} $0, $1;"] = f"asm.cvt.f16.{_sign}{_bits}"


def _half_conversions() -> str:
    text = "declare half @llvm.rint.f16(half)\n"
    for short, kind in (("f32", "float"), ("f64", "double")):
        up = f" %h = bitcast i16 %x to half\n %f = fpext half %h to {kind}\n ret {kind} %f"
        text += _function(f"{kind} @asm.cvt.{short}.f16(i16 %x)", up)
        down = f" %h = fptrunc {kind} %x to half\n %i = bitcast half %h to i16\n ret i16 %i"
        text += _function(f"i16 @asm.cvt.f16.{short}({kind} %x)", down)
    for bits in (8, 16, 32, 64):
        kind = "i16" if bits == 8 else f"i{bits}"  # PTX has no 8-bit registers
        for sign in "su":
            to_int = f""" %h = bitcast i16 %x to half
 %r = call half @llvm.rint.f16(half %h)
 %i = fpto{sign}i half %r to {kind}
 ret {kind} %i"""
            text += _function(f"{kind} @asm.cvt.{sign}{bits}.f16(i16 %x)", to_int)
            to_half = (
                f" %h = {sign}itofp {kind} %x to half\n %i = bitcast half %h to i16\n ret i16 %i"
            )
            text += _function(f"i16 @asm.cvt.f16.{sign}{bits}({kind} %x)", to_half)
    return text


def _permutation() -> str:
    """prmt: byte k of the result is the byte of b:a that the low three bits of nibble k say; where
    the nibble's highest bit is set, eight times that byte's sign."""
    body = " %l = zext i32 %a to i64\n %h = zext i32 %b to i64\n %u = shl i64 %h, 32\n"
    body += " %both = or i64 %l, %u\n"
    for k in range(4):
        body += f""" %n{k} = lshr i32 %s, {4 * k}
 %i{k} = and i32 %n{k}, 7
 %z{k} = zext i32 %i{k} to i64
 %b{k} = shl i64 %z{k}, 3
 %v{k} = lshr i64 %both, %b{k}
 %t{k} = trunc i64 %v{k} to i8
 %g{k} = ashr i8 %t{k}, 7
 %q{k} = and i32 %n{k}, 8
 %c{k} = icmp eq i32 %q{k}, 0
 %e{k} = select i1 %c{k}, i8 %t{k}, i8 %g{k}
 %m{k} = zext i8 %e{k} to i32
 %p{k} = shl i32 %m{k}, {8 * k}
"""
    body += " %r1 = or i32 %p0, %p1\n %r2 = or i32 %p2, %p3\n %r = or i32 %r1, %r2\n ret i32 %r"
    return _function("i32 @nvvm.prmt(i32 %a, i32 %b, i32 %s)", body)


def _loads() -> str:
    volatile = " %p = inttoptr i64 %a to ptr\n %v = load volatile i32, ptr %p\n ret i32 %v"
    text = _function("i32 @asm.load_volatile(i64 %a)", volatile)
    text += _function("i32 @asm.pinned(i32 %x)", " ret i32 %x")
    return text + _function("void @asm.prefetch(i64 %a)", " ret void")  # a hint, not an access


def prelude() -> str:
    """The whole module, but for the triple and the functions of libdevice."""
    parts = (
        *(_registers, _barriers, _warp_operations, _atomics),
        *(_half_conversions, _permutation, _loads),
    )
    return "".join(part() for part in parts)


def assembly_declarations() -> str:
    """Declarations of the assembly twins, for modules that call them."""
    text = _registers() + _warp_operations() + _half_conversions() + _loads()
    heads = re.findall(r"^define linkonce_odr (.+ @asm\.\S+\(.*\)) alwaysinline", text, re.M)
    heads.append("i32 @emu.dynamic_bytes()")
    return "".join(f"declare {head}\n" for head in heads)
