"""How far FP32 may stray: bounds derived from the roundings of each op, never a tolerance by feel.

An FP32 sum of n products errs by at most gamma_n * sum |w| |x|, gamma_n = n u / (1 - n u) with
u = 2^-24 (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from m40llm.reference import softmax

Array = NDArray[Any]
UNIT_ROUNDOFF = 2.0**-24  # half a unit in the last place of FP32, relative
SMALLEST_NORMAL = 2.0**-126


def gamma(n_terms: Any) -> Any:
    """Relative error bound of an FP32 sum of n_terms products, any order."""
    return n_terms * UNIT_ROUNDOFF / (1 - n_terms * UNIT_ROUNDOFF)


def assert_within(got: Array, expected: Array, bound: Any) -> None:
    """AssertionError, with the worst element, unless |got - expected| <= bound everywhere."""
    error = np.abs(got - expected)
    wrong = ~(error <= bound)  # NaN is wrong, too
    if not wrong.any():
        return
    limit = np.broadcast_to(bound, error.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        excess = np.where(wrong, np.nan_to_num(error / limit, nan=np.inf), 0)
    at = np.unravel_index(int(excess.argmax()), error.shape)
    where = ", ".join(map(str, at))
    raise AssertionError(
        f"{wrong.sum()} of {wrong.size} elements are off: [{where}] is {got[at]}, expected "
        f"{expected[at]} within {limit[at]:.3g}"
    )


def rms_norm_bound(n_embd: int, n_threads: int) -> float:
    """Relative. A sum of squares rounds once a term of its thread (which takes columns in fours),
    warp and block; the root halves that. Then: mean, eps, root, quotient and two products, each
    correctly rounded.
    """
    n_sums = 1 + 4 * -(-n_embd // (4 * n_threads)) + 5 + n_threads // 32
    return float((n_sums / 2 + 6) * UNIT_ROUNDOFF * 1.01)


def softmax_bound(x: Array, expected: Array, n_threads: int) -> Array:
    """x - max rounds once, which exp makes absolute; exp within 2 units in the last place, twice
    (here and in the sum); the sum; the quotient.
    """
    with np.errstate(invalid="ignore"):
        shifted = np.where(np.isfinite(x), x.max(axis=1, keepdims=True) - x, 0)
    n_sums = -(-x.shape[1] // n_threads) + 5 + n_threads // 32
    in_sum = (expected * shifted).sum(axis=1, keepdims=True)
    bound = (shifted + in_sum + 4 + 4 + n_sums + 2) * UNIT_ROUNDOFF * expected
    return np.asarray(1.01 * bound + SMALLEST_NORMAL)


def gate_bound(name: str, gate: Array, up: Array, expected: Array) -> Array:
    """exp within 2 units in the last place, then sum, quotient and product. GeGLU's exponent is 5
    roundings from exact, of terms that have its sign; exp makes that relative. Where exp passes
    the largest float32, 2^128, the result is 0 instead of at most 89 * 2^-128 * up.
    """
    g = np.abs(gate.astype(np.float64))
    in_exponent = 1.6 * g * (1 + 0.045 * g * g) * 6 if name == "geglu" else 0.0
    bound = (7 + in_exponent) * UNIT_ROUNDOFF * np.abs(expected)
    return np.asarray(bound + 2.0**-121 * np.abs(up) + SMALLEST_NORMAL)


def scale_bound(x: Array, factor: float) -> Array:
    """One product."""
    return np.asarray(UNIT_ROUNDOFF * np.abs(x.astype(np.float64) * factor) + SMALLEST_NORMAL)


def softcap_bound(expected: Array) -> Array:
    """1 / cap and its product, cap and its product, and tanh: within 2.5 units in the last place,
    libdevice's (CUDA programming guide) and glibc's (2.2 measured). tanh makes a relative error
    of its argument no larger, being concave where it is positive.
    """
    return np.asarray(gamma(4 + 5) * np.abs(expected) + SMALLEST_NORMAL)


def add_scaled_bound(x: Array, y: Array, factor: float | Array) -> Array:
    """A product and a sum, or one of both."""
    product = np.abs(y.astype(np.float64) * factor)
    return np.asarray(UNIT_ROUNDOFF * (2 * product + np.abs(x)) * 1.01 + SMALLEST_NORMAL)


def add_rows_bound(x: Array, rows: Array, shares: Array, y: Array) -> Array:
    """As add_scaled's, in the rows that change; the others stay as they are."""
    bound = np.zeros(x.shape)
    bound[rows] = add_scaled_bound(x[rows], y, shares[:, None])
    return bound


def add_shares_bound(x: Array, shares: Array, y: Array) -> Array:
    """n_used products and as many sums, in any order, x among them."""
    n_used = shares.size // len(x)
    products = np.abs(shares.astype(np.float64)[:, None] * y).reshape(len(x), n_used, -1)
    magnitude = np.abs(x) + products.sum(axis=1)
    return np.asarray(gamma(n_used + 1) * magnitude + SMALLEST_NORMAL)


def choose_experts_bound(logits: Array, ids: Array, scale: float, is_normalised: bool) -> Array:
    """A softmax, over the chosen by one thread or over all by 32; then a product with `scale`."""
    x = np.take_along_axis(logits, ids, axis=1) if is_normalised else logits
    parts = softmax(x)
    bound = softmax_bound(x, parts, 1 if is_normalised else 32) + 2 * UNIT_ROUNDOFF * parts
    if not is_normalised:
        bound = np.take_along_axis(bound, ids, axis=1)
    return np.asarray(scale * bound + SMALLEST_NORMAL)


def rope_bound(x: Array) -> Array:
    """Two products and a sum: three roundings of at most |a| + |b| (|cos|, |sin| <= 1)."""
    return np.asarray(3 * UNIT_ROUNDOFF * 2 * np.abs(x).max(axis=-1, keepdims=True))


def gated_sums_bound(y: Array, error: Array, expected: Array) -> Array:
    """Of silu(gate) * up, both sums: y [n_tokens, 2 n_out], gate before up, and their errors.

    silu is at most |gate| and changes by at most 1.1 times what gate does; its exp, with an
    error of 2 units, sum and quotient add at most gamma(8).
    """
    gate, up = np.split(y, 2, axis=1)
    gate_error, up_error = np.split(error, 2, axis=1)
    bound = 1.1 * gate_error * (np.abs(up) + up_error) + np.abs(gate) * up_error
    bound = bound + gamma(8) * np.abs(expected) + UNIT_ROUNDOFF * np.abs(gate * up)
    return np.asarray(bound)


def turned_norm_bound(normed: Array, n_mean: int) -> Array:
    """Of heads that are normed and turned: normed [..., head_dim], exact and not yet turned; n_mean
    of them have one mean square.

    A sum of squares rounds five times for each of a lane's quads of columns, five times in a warp,
    and once for each of 16 warps; the root halves that. Then mean, eps, root and quotient; three
    products and a sum.
    """
    n_sums = 5 * -(-n_mean // 128) + 5 + 16
    relative = (n_sums / 2 + 8) * UNIT_ROUNDOFF * 1.01
    return np.asarray(relative * 2 * np.abs(normed).max(axis=-1, keepdims=True))


def attention_bound(
    score: Array, n_keys: Any, head_dim: int, magnitude: Array, off: Array | float = 0.0
) -> Array:
    """Error of FP32 arithmetic, per element; the FP16 of the cache is exact input.

    `score` is scale * max over the keys of sum |q| |k|; `magnitude` the same attention over |v|.

    A score s errs by gamma_(head_dim + 9) of `score`, which bounds |s|, too: head_dim products,
    `inner` and its product, `outer` and its product, tanh (2.5 ulp). The differences of scores and
    maxima that are exponents add up to 2 |s| at most, as a running maximum only grows: u 2 |s|.
    Each key can cost a weight one rescaling (exp2 of 2 ulp, a product), and each sum one product
    and one addition: 7 roundings a key, and some for the few parts that are merged. A relative
    error r in each weight, above and below the fraction bar, makes 2 r / (1 - r) of sum p |v|.

    Over Q8_0 a lane multiplies its 8 products by their scale, and a weight by its: one rounding
    more each, of those that head_dim products in pairs of lanes, and a key that has not been
    rescaled yet, leave over.

    off: of a score, because q is so far from what it should be.
    """
    exponent = (gamma(head_dim + 9) + 2 * UNIT_ROUNDOFF) * (score + off) + off
    relative = np.expm1(exponent) + gamma(7 * n_keys + 64)
    return np.asarray(2 * relative / (1 - relative) * magnitude)
