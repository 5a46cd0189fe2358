"""The norm after a block, an instruction of the decode program: out += factor * RMSNorm(x)."""

from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as GGMLType

from m40llm import reference
from m40llm.fuzz.bounds import UNIT_ROUNDOFF, add_scaled_bound, assert_within, rms_norm_bound
from m40llm.fuzz.contents import normals
from m40llm.fuzz.definition import target
from m40llm.fuzz.instruction_alone import (
    EPS,
    add_normed_kernel,
    bits,
    given_words,
    program_of,
    taken,
)
from m40llm.fuzz.strategies import choices, seeds, widths
from m40llm.kernels.program import add_normed as kernels
from m40llm.kernels.program import words
from m40llm.kernels.program.form import N_THREADS, Form


@target(
    ops=kernels,
    n_seqs=choices([1, 4]),
    n_cols=widths(4, 600),
    n_blocks=choices([1, 2, 3, 8, 40]),
    factor=choices([1.0, 0.22]),
    seed=seeds(),
)
def program_add_normed(
    card: Any, ops: Any, n_seqs: int, n_cols: int, n_blocks: int, factor: float, seed: int
) -> None:
    f16, rng = GGMLType.F16, np.random.default_rng(seed)
    shape = (n_seqs, 2, 1, 32, 32)
    form = Form((f16,), f16, *shape, "half", has_factors=factor != 1, has_post_norms=True)
    x = normals(rng, n_seqs, n_cols, spread=10.0 ** rng.integers(-3, 3))
    old, weight = normals(rng, n_seqs, n_cols), 1 + normals(rng, n_cols, spread=0.5)
    norm, given, out = card.upload(weight), given_words(card, x), given_words(card, old)
    program = program_of(
        card,
        {
            words.OP: words.ADD_NORMED,
            words.X: given,
            words.OUT: out,
            words.N_COLS: n_cols,
            words.OUT_COLS: n_cols,
            words.NORM: norm,
            words.FACTOR: bits(factor),
        },
    )
    kernel = add_normed_kernel(ops.add_normed_of, form)
    card.launch(kernel, n_blocks, N_THREADS, program)
    normed = reference.rms_norm(x, weight, EPS)
    factor = float(np.float32(factor))
    expected = old + factor * normed
    # As rms_norm in this many threads; one product more; and add_scaled's product and sum.
    relative = rms_norm_bound(n_cols, N_THREADS) + 2 * UNIT_ROUNDOFF
    bound = relative * np.abs(factor * normed) + add_scaled_bound(old, normed, factor)
    assert_within(taken(card, out).reshape(old.shape), expected, bound)
