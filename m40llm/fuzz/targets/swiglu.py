"""swiglu and geglu against the FP64 references."""

from typing import Any

import numpy as np

from m40llm import reference
from m40llm.fuzz.bounds import assert_within, gate_bound
from m40llm.fuzz.contents import normals
from m40llm.fuzz.definition import target
from m40llm.fuzz.strategies import choices, flags, seeds, sizes
from m40llm.kernels import swiglu as kernels


@target(
    ops=kernels,
    name=choices(["swiglu", "geglu"]),
    n_tokens=sizes(2, 4),
    n_ff=sizes(256, 700),
    in_place=flags(),
    seed=seeds(),
)
def swiglu(
    card: Any, ops: Any, name: str, n_tokens: int, n_ff: int, in_place: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    gate = (normals(rng, n_tokens, n_ff) * rng.choice([0.1, 3, 40], n_ff)).astype(np.float32)
    up = normals(rng, n_tokens, n_ff, spread=2)
    gate_on = card.upload(gate, read_only=not in_place)
    out = gate_on if in_place else card.poisoned(gate.shape)
    getattr(ops, name)(gate_on, card.upload(up), out, stream=card)
    expected = getattr(reference, name)(gate, up)
    assert_within(card.read(out), expected, gate_bound(name, gate, up, expected))
