"""Numba's compiler with what it does over and over done once: the same IR in half the time.

What it repeats, for the decode program of 165 functions, with the same result each time:

modules   of a library: once for every way through the calls that leads to one, 449 in all
sizes     of LLVM types, each by parsing a module with a global of that type: 16,000
hashes    of debug information, through all that a node refers to: six million nodes
flags     as dictionaries of all 30, to compare or to show them to nobody: 130,000
calls     of built-in functions: each is resolved anew in every round of type inference
variables of an instruction, asked for by nine passes: all else in it is compared with 13 types

Python's garbage collector waits meanwhile: a quarter of the time, and it finds little.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final
from weakref import WeakKeyDictionary

from llvmlite.ir import types as llvm_types
from llvmlite.ir import values
from numba.cuda import types
from numba.cuda.codegen import CUDACodeLibrary
from numba.cuda.core import ir
from numba.cuda.core.targetconfig import ConfigStack, TargetConfig

_sizes: dict[tuple[Any, str], int] = {}
_signatures: WeakKeyDictionary[Any, dict[Any, Any]] = WeakKeyDictionary()

_abi_size: Final = llvm_types.Type.get_abi_size
_call_type: Final = types.BaseFunction.get_call_type
_list_vars: Final = ir.Inst._rec_list_vars
_HAVE_NO_VARS: Final = (str, int, bool, type(None), ir.Loc, ir.Scope)


def _modules(library: Any) -> list[Any]:
    """The library's own module, then those of the libraries that it needs."""
    found: list[Any] = []
    seen: set[int] = set()
    waiting = [library]
    while waiting:
        library = waiting.pop()
        if id(library) not in seen:
            seen.add(id(library))
            waiting += reversed([*getattr(library, "_linking_libraries", ())])
            own = getattr(library, "_module", None)
            found += library.modules if own is None else [own]
    return found


def _size(kind: Any, target_data: Any, context: Any = None) -> int:
    text = str(kind)
    if context is not None or "%" in text:  # what a name stands for is the context's
        return int(_abi_size(kind, target_data, context))
    key = target_data, text
    if key not in _sizes:
        _sizes[key] = _abi_size(kind, target_data)
    return _sizes[key]


def _hash_of(parts: Callable[[Any], Any]) -> Callable[[Any], int]:
    """The hash of a node's parts, kept for as long as it has these operands."""

    def hashed(node: Any) -> int:
        kept = node.__dict__.get("_kept_hash")
        if kept is None or kept[0] is not node.operands:
            kept = node._kept_hash = node.operands, hash(parts(node))
        return int(kept[1])

    return hashed


def _flags_are_equal(flags: Any, other: Any) -> Any:
    if not isinstance(other, TargetConfig):
        return NotImplemented
    same = type(flags) is type(other) and flags._values == other._values
    return same or _flag_values(flags) == _flag_values(other)


def _flag_values(flags: Any) -> dict[str, Any]:
    return {name: flags._values.get(name, o.default) for name, o in flags.options.items()}


def _resolved(function: Any, context: Any, args: Any, kws: Any) -> Any:
    """The signature of a call of a built-in function."""
    known = _signatures.setdefault(function, {})
    key = context, tuple(args), tuple(kws.items()), ConfigStack.top_or_none()
    if key not in known:
        known[key] = _call_type(function, context, args, kws)
    return known[key]


def _listed(instruction: Any, part: Any) -> list[Any]:
    """The variables in a part of an instruction."""
    kind = type(part)
    if kind is ir.Var:
        return [part]
    if kind in _HAVE_NO_VARS:
        return []
    if kind is dict:
        part = part.values()
    elif kind is not list and kind is not tuple:
        return list(_list_vars(instruction, part))
    return [var for each in part for var in _listed(instruction, each)]


_QUICK: Final[tuple[tuple[Any, str, Any], ...]] = (
    (CUDACodeLibrary, "modules", property(_modules)),
    (llvm_types.Type, "get_abi_size", _size),
    (values.DIValue, "__hash__", _hash_of(lambda di: (di.is_distinct, di.kind, di.operands))),
    (values.MDValue, "__hash__", _hash_of(lambda md: md.operands)),
    (TargetConfig, "__eq__", _flags_are_equal),
    (TargetConfig, "__hash__", lambda flags: hash(tuple(sorted(flags.options)))),
    (TargetConfig, "values", _flag_values),
    (types.BaseFunction, "get_call_type", _resolved),
    (ir.Inst, "_rec_list_vars", _listed),
)


@contextmanager
def quick_numba() -> Iterator[None]:
    """Within it Numba compiles for a card without doing things over and over."""
    slow = [(owner, name, owner.__dict__[name]) for owner, name, _ in _QUICK]
    collects = gc.isenabled()
    gc.disable()
    for owner, name, quick in _QUICK:
        setattr(owner, name, quick)
    try:
        yield
    finally:
        for owner, name, original in slow:
            setattr(owner, name, original)
        if collects:
            gc.enable()
