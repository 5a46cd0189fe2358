"""What a kernel is, as a hash that is the same in every process: the key of compiled code on disk.

The hash covers the bytecode of the function, its lines, and all that it reaches through closures
and globals: sizes, device functions, intrinsics and their generators, tables. Anything that this
cannot describe exactly has no fingerprint, and so is compiled anew rather than confused.
"""

import dataclasses
import enum
import functools
import hashlib
import types
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from m40llm.kernels.contract import Kernel

# What comes from these changes only with its version, which is part of every key.
_VERSIONED: Final = (
    *("builtins", "collections", "cuda", "functools", "llvmlite"),
    *("math", "numba", "numpy", "operator", "typing"),
)
_PLAIN: Final = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis))


def fingerprint(kernel: Kernel) -> str | None:
    """Hexadecimal digest of the kernel and its options; None if something in it is unknown."""
    function = kernel.function
    try:
        return _fingerprint(function, (kernel.registers, kernel.fastmath))
    except _UnknownError:
        return None


def _fingerprint(function: Any, options: tuple[Any, ...]) -> str:
    digest = hashlib.sha256(repr(options).encode())
    for part in _parts(function, {}):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:40]


class _UnknownError(Exception):
    """A value that cannot be described."""


def _parts(value: Any, seen: dict[int, tuple[int, Any]]) -> Iterator[str]:
    """Texts that tell the value from any other one."""
    if isinstance(value, (*_PLAIN, np.generic, np.dtype)):
        yield f"{type(value).__name__} {value!r}"
    elif isinstance(value, enum.Enum):
        yield f"{type(value).__qualname__}.{value.name} {value.value!r}"
    elif id(value) in seen:
        yield f"again {seen[id(value)][0]}"
    else:
        seen[id(value)] = len(seen), value  # the value is kept, so that no other takes its id
        yield from _compound(value, seen)


def _compound(value: Any, seen: dict[int, tuple[int, Any]]) -> Iterator[str]:
    if isinstance(value, types.ModuleType | type) or _is_versioned(value):
        yield _name(value)
    elif isinstance(value, types.FunctionType):
        yield from _function(value, seen)
    elif isinstance(value, tuple | list):
        yield from _sequence(value, seen)
    elif isinstance(value, set | frozenset):
        yield from _sequence(sorted(value, key=repr), seen)
    elif isinstance(value, dict):
        yield from _sequence([*value.items()], seen)
    elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
        yield f"{value.dtype.str}{value.shape}{hashlib.sha256(value.tobytes()).hexdigest()}"
    elif dataclasses.is_dataclass(value):
        yield type(value).__qualname__
        yield from _sequence([getattr(value, f.name) for f in dataclasses.fields(value)], seen)
    else:
        yield from _wrapped(value, seen)


def _sequence(values: Any, seen: dict[int, tuple[int, Any]]) -> Iterator[str]:
    yield f"{len(values)} of"
    for value in values:
        yield from _parts(value, seen)


def _wrapped(value: Any, seen: dict[int, tuple[int, Any]]) -> Iterator[str]:
    """Objects around one function: Numba's dispatchers and intrinsics, caches, partials."""
    if isinstance(value, functools.partial):
        yield from _sequence([value.func, value.args, value.keywords], seen)
    elif hasattr(value, "py_func"):  # a device function
        yield f"jit {sorted(getattr(value, 'targetoptions', {}).items(), key=repr)!r}"
        yield from _parts(value.py_func, seen)
    elif hasattr(value, "_defn"):  # an intrinsic
        yield "intrinsic"
        yield from _parts(value._defn, seen)
    elif isinstance(value, functools._lru_cache_wrapper):
        yield from _parts(value.__wrapped__, seen)
    else:
        raise _UnknownError(type(value))


def _function(function: types.FunctionType, seen: dict[int, tuple[int, Any]]) -> Iterator[str]:
    yield function.__qualname__
    yield from _code(function.__code__, seen)
    for cell in function.__closure__ or ():
        yield from _parts(cell.cell_contents, seen)
    yield from _parts(function.__defaults__, seen)
    names = sorted(_names(function.__code__))
    for name in names:
        if name in function.__globals__:
            yield name
            value = function.__globals__[name]
            yield from _of_module(value, names, seen) if _is_ours(value) else _parts(value, seen)


def _is_ours(value: Any) -> bool:
    return isinstance(value, types.ModuleType) and value.__name__.partition(".")[0] == "m40llm"


def _of_module(
    module: types.ModuleType, names: list[str], seen: dict[int, tuple[int, Any]]
) -> Iterator[str]:
    """What code with these names may read of a module of ours: `words.N_ROWS`."""
    yield module.__name__
    for name in names:
        if hasattr(module, name):
            yield name
            yield from _parts(getattr(module, name), seen)


def _code(code: types.CodeType, seen: dict[int, tuple[int, Any]]) -> Iterator[str]:
    """Bytecode, names and constants; and file and lines, which errors and profiles show."""
    yield f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {code.co_freevars}"
    yield f"{code.co_filename} {code.co_firstlineno} {code.co_linetable.hex()}"
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _code(constant, seen)
        else:
            yield from _parts(constant, seen)


def _names(code: types.CodeType) -> set[str]:
    """Names of globals and attributes that the code, or code inside it, may read."""
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return set(code.co_names).union(*map(_names, inner))


def _is_versioned(value: Any) -> bool:
    """Types, functions and constants of packages whose versions are known: Numba's float32, min."""
    if hasattr(value, "py_func") or hasattr(value, "_defn"):
        return False
    owner = value if hasattr(value, "__module__") else type(value)
    return str(owner.__module__).partition(".")[0] in _VERSIONED and _has_name(value)


def _has_name(value: Any) -> bool:
    made_by_value = type(value).__module__.startswith(("numba", "llvmlite"))  # str says all of it
    return made_by_value or hasattr(value, "__qualname__")


def _name(value: Any) -> str:
    """A module, class or library function by name; of others, the name says too little."""
    if isinstance(value, types.ModuleType):
        name = value.__name__
    else:
        owner = value if hasattr(value, "__qualname__") else type(value)
        name = f"{owner.__module__}.{owner.__qualname__}"
    root = name.partition(".")[0]
    if root not in _VERSIONED and not (isinstance(value, type) and root in ("m40llm", "gguf")):
        raise _UnknownError(name)
    return name if hasattr(value, "__qualname__") else f"{name} {value}"
