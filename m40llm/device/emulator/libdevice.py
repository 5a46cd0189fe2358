"""NVIDIA's libdevice (`__nv_*`) on the host: LLVM intrinsics, the C library, or a line of IR.

Results may differ from the card's in the last place, as those of two libraries do.
"""

import re
from typing import Final

from m40llm.device.emulator.errors import UnsupportedKernelError

_SUFFIX: Final = {"float": "f32", "double": "f64", "i32": "i32", "i64": "i64", "i16": "i16"}

# Names less the final f of the float32 form. These are LLVM intrinsics of the same name,
# fmt: off
_SAME_NAME: Final = (
    "sqrt", "exp", "exp2", "exp10", "log", "log2", "log10", "sin", "cos", "tan", "asin", "acos",
    "atan", "atan2", "sinh", "cosh", "tanh", "floor", "ceil", "trunc", "rint", "nearbyint", "round",
    "fabs", "pow", "copysign", "fma",
)
# these of another,
_OTHER_NAME: Final = {
    "fmax": "maxnum", "fmin": "minnum", "fmaf_rn": "fma", "fma_rn": "fma",
    "fsqrt_rn": "sqrt", "dsqrt_rn": "sqrt",
}
# and these functions of the C library.
_LIBM: Final = (
    "erf", "erfc", "cbrt", "expm1", "log1p", "asinh", "acosh", "atanh", "lgamma", "tgamma", "logb",
    "fmod", "hypot", "remainder", "nextafter", "fdim", "ldexp",
)
_FAST: Final = ("exp", "exp10", "log", "log2", "log10", "sin", "cos", "tan", "pow")
# fmt: on
_FLOAT: Final = {name: name for name in _SAME_NAME} | _OTHER_NAME

# libdevice's name -> LLVM intrinsic, constant operands
_INTEGER: Final = {
    "popc": ("ctpop", ""),
    "brev": ("bitreverse", ""),
    "brevll": ("bitreverse", ""),
    "clz": ("ctlz", ", i1 false"),
    "abs": ("abs", ", i1 false"),
    "llabs": ("abs", ", i1 false"),
    **{prefix + name: ("s" + name, "") for name in ("min", "max") for prefix in ("", "ll")},
    **{prefix + name: (name_u, "") for name, name_u in (("min", "umin"), ("max", "umax"))
       for prefix in ("u", "ull")},
}  # fmt: skip

# Lines of IR over %a, %b, ... of type T (intrinsics' suffix S) that leave their result in %r.
_WIDE_PRODUCT = "%x = {0} i32 %a to i64; %y = {0} i32 %b to i64; %p = mul i64 %x, %y; "
_HIGH_WORD = _WIDE_PRODUCT + "%h = lshr i64 %p, 32; %r = trunc i64 %h to i32"
_FIND_FIRST = (
    "%c = call T @llvm.cttz.S(T %a, i1 false); %n = add T %c, 1; %z = icmp eq T %a, 0; "
    "%w = select i1 %z, T 0, T %n; "
)
_TO_INT = "%n = call T @llvm.{round}.S(T %a); %r = call {to} @llvm.fpto{sign}i.sat.{to}.S(T %n)"
_CLASS = "%c = call i1 @llvm.is.fpclass.S(T %a, i32 {0}); %r = zext i1 %c to i32"
_LINES: Final = {
    "rsqrt": "%s = call T @llvm.sqrt.S(T %a); %r = fdiv T 1.0, %s",
    "frsqrt_rn": "%s = call T @llvm.sqrt.S(T %a); %r = fdiv T 1.0, %s",
    "frcp_rn": "%r = fdiv T 1.0, %a",
    "fadd_rn": "%r = fadd T %a, %b",
    "fsub_rn": "%r = fsub T %a, %b",
    "fmul_rn": "%r = fmul T %a, %b",
    "fdiv_rn": "%r = fdiv T %a, %b",
    "fast_fdivide": "%r = fdiv T %a, %b",
    "saturate": "%m = call T @llvm.maxnum.S(T %a, T 0.0); %r = call T @llvm.minnum.S(T %m, T 1.0)",
    "float_as_int": "%r = bitcast T %a to i32",
    "float_as_uint": "%r = bitcast T %a to i32",
    "int_as_float": "%r = bitcast T %a to float",
    "uint_as_float": "%r = bitcast T %a to float",
    "int2float_rn": "%r = sitofp T %a to float",
    "uint2float_rn": "%r = uitofp T %a to float",
    "float2int_rz": _TO_INT.format(round="trunc", to="i32", sign="s"),
    "float2int_rn": _TO_INT.format(round="rint", to="i32", sign="s"),
    "float2int_rd": _TO_INT.format(round="floor", to="i32", sign="s"),
    "float2int_ru": _TO_INT.format(round="ceil", to="i32", sign="s"),
    "float2uint_rz": _TO_INT.format(round="trunc", to="i32", sign="u"),
    "float2uint_rn": _TO_INT.format(round="rint", to="i32", sign="u"),
    "llrint": _TO_INT.format(round="rint", to="i64", sign="s"),
    "float2half_rn": "%h = fptrunc T %a to half; %r = bitcast half %h to i16",
    "half2float": "%h = bitcast T %a to half; %r = fpext half %h to float",
    "popcll": "%c = call T @llvm.ctpop.S(T %a); %r = trunc T %c to i32",
    "clzll": "%c = call T @llvm.ctlz.S(T %a, i1 false); %r = trunc T %c to i32",
    "ffs": _FIND_FIRST + "%r = add i32 %w, 0",
    "ffsll": _FIND_FIRST + "%r = trunc i64 %w to i32",
    "mulhi": _HIGH_WORD.format("sext"),
    "umulhi": _HIGH_WORD.format("zext"),
    "isnan": "%c = fcmp uno T %a, %a; %r = zext i1 %c to i32",
    "isnand": "%c = fcmp uno T %a, %a; %r = zext i1 %c to i32",
    "isinf": _CLASS.format(0x204),
    "isinfd": _CLASS.format(0x204),
    "finite": _CLASS.format(0x1F8),
    "isfinited": _CLASS.format(0x1F8),
}

# LLVM turns calls of some functions into calls of others, so all of C's mathematics may appear.
_C_FUNCTIONS: Final = frozenset(
    name + suffix
    for name in (*_SAME_NAME, *_LIBM, "fmax", "fmin", "sincos")
    for suffix in ("", "f")
)

_DECLARATION = re.compile(r'^declare (\w+) @"?__nv_(\w+)"?\(([^)]*)\)', re.M)


def libdevice(texts: tuple[str, ...]) -> str:
    """Definitions of every `__nv_*` function that the modules declare."""
    found = {m[2]: (m[1], m[3]) for text in texts for m in _DECLARATION.finditer(text)}
    return "".join(_definition(name, *found[name]) for name in sorted(found))


def _definition(name: str, result: str, operands: str) -> str:
    kinds = [operand.split()[0] for operand in operands.split(",")] if operands else []
    if name in {"fast_sincosf", "sincosf", "sincos"}:
        body = _sincos(kinds[0], result)
    else:
        body = _body(name, result, kinds).replace("T ", kinds[0] + " ")
        body = body.replace(".S(", f".{_SUFFIX[kinds[0]]}(")
    names = ", ".join(f"{kind} %{letter}" for kind, letter in zip(kinds, "abcd", strict=False))
    head = f"define linkonce_odr {result} @__nv_{name}({names}) alwaysinline nounwind"
    end = "ret void" if result == "void" else f"ret {result} %r"
    return f"{head} {{\n {body.replace('; ', chr(10) + ' ')}\n {end}\n}}\n"


def _body(name: str, result: str, kinds: list[str]) -> str:
    """The lines of one function; its C name is the libdevice name less a final f for float."""
    plain = name.removesuffix("f") if kinds[0] == "float" and not name.endswith("_rn") else name
    if plain.startswith("fast_") and plain.removeprefix("fast_") in _FAST:
        plain = plain.removeprefix("fast_")
    passed = ", ".join(f"{kind} %{letter}" for kind, letter in zip(kinds, "abcd", strict=False))
    if plain in _LINES:
        return _LINES[plain]
    if plain in _FLOAT:
        return f"%r = call {result} @llvm.{_FLOAT[plain]}.S({passed})"
    if plain in _INTEGER:
        intrinsic, constants = _INTEGER[plain]
        return f"%r = call {result} @llvm.{intrinsic}.S({passed}{constants})"
    if plain in _LIBM:
        return f"%r = call {result} @{plain}{'f' if kinds[0] == 'float' else ''}({passed})"
    raise UnsupportedKernelError(f"libdevice function without an emulated twin: __nv_{name}")


def _sincos(kind: str, result: str) -> str:
    """Both through pointers; what Numba declares that it returns, nobody reads."""
    lines = (f"%{f} = call {kind} @llvm.{f}.{_SUFFIX[kind]}({kind} %a)" for f in ("sin", "cos"))
    nothing = [] if result == "void" else [f"%r = freeze {result} poison"]
    stores = [f"store {kind} %sin, ptr %b", f"store {kind} %cos, ptr %c"]
    return "; ".join([*lines, *stores, *nothing])


def c_declarations(definitions: str) -> str:
    """Declarations of the C library's functions that the definitions call."""
    calls = set(re.findall(r"call (float|double) @(\w+)\(([^)]*)\)", definitions))
    unique = {
        name: f"declare {result} @{name}({', '.join(p.split()[0] for p in passed.split(','))})"
        for result, name, passed in calls
    }
    return "".join(f"{unique[name]} memory(none) nounwind willreturn\n" for name in sorted(unique))


def is_c_function(name: str) -> bool:
    """Whether the C library's mathematics has it."""
    return name in _C_FUNCTIONS
