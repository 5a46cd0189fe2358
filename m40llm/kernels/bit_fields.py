"""Bytes taken apart into fields of a few bits, and put together again, on the host."""

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


def split_fields(data: Bytes, n_bits: int) -> Bytes:
    """Fields of n_bits, lowest first: uint8[..., n] -> uint8[..., 8 / n_bits, n]."""
    shifts = np.arange(0, 8, n_bits, dtype=np.uint8)[:, None]
    return (data[..., None, :] >> shifts) & np.uint8((1 << n_bits) - 1)


def join_fields(fields: Bytes, n_bits: int) -> Bytes:
    """The inverse of split_fields: uint8[..., 8 / n_bits, n] -> uint8[..., n]."""
    shifts = np.arange(0, 8, n_bits, dtype=np.uint8)[:, None]
    joined: Bytes = np.bitwise_or.reduce(fields << shifts, axis=-2)
    return joined
