"""MXFP4's quants in words: every word holds 16 of them in one way, and each is a float in place."""

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from m40llm.kernels import e2m1

VALUES = np.array([0, 1, 2, 3, 4, 6, 8, 12])  # doubled, without a sign
seeds = st.integers(0, 2**32)


@given(seed=seeds)
@example(seed=0)
def test_pack_and_unpack_are_inverses(seed: int) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 16, (64, 16), np.uint8)
    codes[:16] = np.arange(16, dtype=np.uint8)[:, None]  # carries through all of the third word
    np.testing.assert_array_equal(e2m1.unpack(e2m1.pack(codes)), codes)
    words = rng.integers(0, 2**32, (64, 2), np.uint32)
    words[:2] = 0, 2**32 - 1
    np.testing.assert_array_equal(e2m1.pack(e2m1.unpack(words)), words)


@given(seed=seeds)
def test_a_rotation_and_a_mask_give_the_value(seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 16, (64, 16), np.uint8)
    first, second = e2m1.pack(codes).T.astype(np.uint64)
    third = (first + 4 * second) & 0xFFFFFFFF
    expected = np.where(codes & 8, -1, 1) * VALUES[codes & 7]
    for half, own in enumerate((first, second)):
        found = [(own, left) for left in e2m1.OWN]
        found += [(third, left + 16 * half) for left in e2m1.SHARED]
        for k, (word, left) in enumerate(found):
            turned = (word << np.uint64(left) | word >> np.uint64(32 - left)) & 0x81C00000
            floats = turned.astype(np.uint32).view(np.float32).astype(np.float64)
            np.testing.assert_array_equal(floats / e2m1.UNIT, expected[:, 8 * half + k])
