"""Bytes and FLOPs of a launch, from its kernel's contract and the shapes of what it is given.

Bytes are those that must cross the bus: each array once, read or written, and of those that are
read by rows (embeddings, the cache, tables of angles) the rows that are asked for. What blocks
read again is taken to come from the L2.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from m40llm.device.gpu.bound import address
from m40llm.kernels.contract import Kernel

Args = Mapping[str, Any]
Positions = NDArray[np.int32]

# Given another array of the launch where there is none.
_OPTIONAL: Final = ("highs", "scales", "bias", "residual", "sums", "arrived")


@dataclass(frozen=True)
class Work:
    """n_flops: of matrix products and attention; 0 where a launch only moves.

    largest  the part of the block that has most to do, in parts of an average one
    """

    n_bytes: int
    n_flops: int = 0
    largest: float = 1.0


def work(kernel: Kernel, args: tuple[Any, ...], positions: Positions) -> Work:
    """Of a launch of the kernel; positions: of the rows that it works for."""
    named = dict(zip(signature(kernel.function).parameters, args, strict=True))
    rule = _RULES.get(kernel.name.removesuffix("_kernel"), _whole)
    return rule(named, positions)


def _arrays(args: Args) -> dict[str, Any]:
    return {name: value for name, value in args.items() if hasattr(value, "nbytes") and value.ndim}


def _whole(args: Args, positions: Positions) -> Work:
    """Each array once; one that is read and written in place, twice."""
    arrays = _arrays(args)
    required = {address(a) for name, a in arrays.items() if name not in _OPTIONAL}
    return Work(
        sum(
            array.nbytes
            for name, array in arrays.items()
            if name not in _OPTIONAL or address(array) not in required
        )
    )


def _in_place(args: Args, positions: Positions) -> Work:
    """x is read and written."""
    return Work(args["x"].nbytes + sum(a.nbytes for a in _arrays(args).values()))


def _added_rows(args: Args, positions: Positions) -> Work:
    """x[rows[i]] += shares[i] * y[i]: of x the rows that are named."""
    return Work(3 * args["y"].nbytes + args["rows"].nbytes + args["shares"].nbytes)


def _product(args: Args, positions: Positions) -> Work:
    """Sums that blocks leave for the last of a tile are written and read once a split."""
    quants, x, out = args["quants"], args["x"], args["out"]
    given = {name: arg for name, arg in args.items() if name not in ("sums", "arrived")}
    n_splits = int(args.get("n_splits", 1))
    left = 2 * n_splits * out.nbytes if n_splits > 1 and not args["n_whole"] else 0
    n_bytes = _whole(given, positions).n_bytes + left
    return Work(n_bytes, 2 * int(quants.shape[0]) * int(x.size))


def _gathered(args: Args, positions: Positions) -> Work:
    """out[i] = table[rows[i]]"""
    table, _, out = _arrays(args).values()
    n_rows = int(out.shape[0])
    return Work(out.nbytes + n_rows * (4 + int(table.shape[1]) * table.dtype.itemsize))


def _appended(args: Args, positions: Positions) -> Work:
    """K and V into the cache, Q and K turned."""
    n_tokens = int(args["q"].shape[0])
    angles = 2 * n_tokens * int(args["cos"].shape[1]) * 4
    new = args["k"].nbytes + args["v"].nbytes + n_tokens * _key_bytes(args)
    return Work(2 * args["q"].nbytes + new + angles)


def _attention(args: Args, seen: NDArray[np.int64], n_read: int) -> Work:
    """Of rows that see so many keys each, of which n_read are different ones."""
    q = args["q"]
    n_bytes = 2 * q.nbytes + n_read * _key_bytes(args)
    n_flops = 4 * int(q.shape[1]) * int(q.shape[2]) * int(seen.sum())
    return Work(n_bytes, n_flops, float(seen.max() / seen.mean()))


def _decoded(args: Args, positions: Positions) -> Work:
    """Each row has a sequence of its own."""
    seen = _seen(args, positions)
    return _attention(args, seen, int(seen.sum()))


def _prefilled(args: Args, positions: Positions) -> Work:
    """All rows are of one sequence."""
    seen = _seen(args, positions)
    n_read = int(positions.max() - (positions - seen).min())
    return _attention(args, seen, n_read)


def _seen(args: Args, positions: Positions) -> NDArray[np.int64]:
    return np.minimum(positions.astype(np.int64) + 1, int(args["window"]))


def _key_bytes(args: Args) -> int:
    """Of one token's keys and values in the cache."""
    caches = [array for name, array in _arrays(args).items() if name[:2] in ("k_", "v_")]
    return sum(int(a.shape[1]) * int(a.shape[3]) * a.dtype.itemsize for a in caches)


_RULES: Final[dict[str, Callable[[Args, Positions], Work]]] = {
    "gemv": _product,
    "gemm": _product,
    "embedding": _gathered,
    "take_rows": _gathered,
    "rope_append": _appended,
    "rope_append_q8": _appended,
    "attention_decode": _decoded,
    "attention_decode_q8": _decoded,
    "attention_prefill": _prefilled,
    "attention_prefill_q8": _prefilled,
    "add_rows": _added_rows,
    "add_shares": _in_place,
    "scale": _in_place,
    "add_scaled": _in_place,
    "softcap": _in_place,
}
