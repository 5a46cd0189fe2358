"""Products with quants that are subnormal numbers: the same results, at a CPU's full speed.

kernels/unpack.py takes the bits of a small integer n for a float32: n * 2^-149, which a GPU
multiplies as fast as any number. Many CPUs take a hundred cycles for a subnormal operand. Here
such a product becomes one of float64, made from the integer: 24 by 24 bits are exact in 53, so
the one rounding, to float32, gives the bits that the float32 product has.
"""

import re
from typing import Final

from m40llm.device.emulator.writer import VALUE

_LINEAR_BITS: Final = 24  # a float32 whose bits are n < 2^24 is the number n * 2^-149
_UNIT: Final = "0x36A0000000000000"  # 2^-149 as LLVM writes a double
_DEPTH: Final = 8  # of the search for where bits come from

_DEFINITION = re.compile(rf"^\s*({VALUE}) = (.*?)(?:, ![\w.]+ !\d+)*$")
_PRODUCT = re.compile(rf"fmul float ({VALUE}), ({VALUE})$")
_BITS_AS_FLOAT = re.compile(rf"bitcast i32 ({VALUE}) to float$")
_INTEGER = re.compile(
    r"(?:(?P<phi>phi) i32 (?P<sources>.*)|(?P<op>and|or|lshr)(?: \w+)* i32 (?P<a>\S+), (?P<b>\S+)"
    r"|zext(?: nneg)? i(?P<width>\d+) .*)$"
)


def without_subnormals(module: str) -> str:
    """The module; only the products in which an operand is such a number change."""
    return "\n}\n".join(map(_function_without, module.split("\n}\n")))


def _function_without(text: str) -> str:
    """One function, within which names are unique."""
    body = text.split("\n")
    definitions = {m[1]: m[2] for line in body if (m := _DEFINITION.match(line))}
    lines: list[str] = []
    for line in body:
        found = _DEFINITION.match(line)
        product = _PRODUCT.match(found[2]) if found else None
        operands = _operands(product[1], product[2], definitions) if product else None
        if found and operands:
            lines += _widened(found[1], *operands, name=f"%$wide{len(lines)}")
        else:
            lines.append(line)
    return "\n".join(lines)


def _operands(a: str, b: str, definitions: dict[str, str]) -> tuple[str, str] | None:
    """The small integer whose bits one operand is, and the other operand; None if neither is."""
    for candidate, other in ((a, b), (b, a)):
        made = _BITS_AS_FLOAT.match(definitions.get(candidate, ""))
        if made and _n_bits(made[1], definitions) <= _LINEAR_BITS:
            return made[1], other
    return None


def _widened(result: str, integer: str, other: str, *, name: str) -> list[str]:
    """result = float32(integer * 2^-149 * other)."""
    return [
        f"  {name}.integer = sitofp i32 {integer} to double",
        f"  {name}.scaled = fmul double {name}.integer, {_UNIT}",
        f"  {name}.other = fpext float {other} to double",
        f"  {name}.product = fmul double {name}.scaled, {name}.other",
        f"  {result} = fptrunc double {name}.product to float",
    ]


def _n_bits(value: str, definitions: dict[str, str], depth: int = 0) -> int:
    """An i32 is below 2 to the power of this; 32 if nothing is known of it."""
    if re.fullmatch(r"\d+", value):
        return int(value).bit_length()
    made = _INTEGER.match(definitions.get(value, ""))
    if made is None or depth == _DEPTH:
        return 32
    if made["width"]:
        return int(made["width"])
    if made["phi"]:
        sources = re.findall(r"\[ (\S+), ", made["sources"])
        return max(_n_bits(source, definitions, depth + 1) for source in sources)
    a, b = (_n_bits(made[operand], definitions, depth + 1) for operand in "ab")
    if made["op"] == "and":
        return min(a, b)
    if made["op"] == "or":
        return max(a, b)
    return max(a - int(made["b"]), 0) if made["b"].isdigit() else a
