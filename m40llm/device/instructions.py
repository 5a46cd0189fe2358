"""A decode step as data: the instructions that a device runs for one token of each sequence.

    token -> Embed -> layers x (Project qkv, Attend, Project o, Project gate and up, Project down)
          -> Project logits -> Choose -> token

model/program.py makes the list; device/gpu/decoder.py runs it on a card, testing/program_steps.py
in NumPy. An instruction may begin once all that it reads has been written: `writers` says by whom.

Buffers, of n_seqs rows each: x [n_embd] the residual stream, y [n_embd] a block's output before its
norm, qkv [q_dim + 2 kv_dim], attn [q_dim], h [n_ff], logits [vocab_size]. Weights are named as in
the file: blk.3.ffn_down, output_norm; blk.3.attn_qkv.0 is the first group of Q, K and V that are
stacked.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Effect = Literal["rotate", "store", "add", "swiglu", "geglu", "logits"]


@dataclass(frozen=True)
class Embed:
    """out = factor * the embedding of each sequence's token."""

    out: str = "x"
    factor: float = 1.0


@dataclass(frozen=True)
class Project:
    """A matrix product, of RMSNorm(x) where a norm is named, and what becomes of the results.

    layer   whose angles Q and K are turned by
    factor  that the results are multiplied by, their bias included

    rotate  out[first_row + row]: Q, K and V stacked; Q and K turned by RoPE
    store   out[first_row + row]: as it is; Q, K and V where Attend turns them, or before AddNormed
    add     out += result
    swiglu  out = silu(gate) * up, of gate above up; geglu: gelu(gate) * up
    logits  out = result, and its maximum
    """

    effect: Effect
    weight: str
    x: str
    out: str
    norm: str | None = None
    bias: str | None = None
    first_row: int = 0
    layer: int = 0
    factor: float = 1.0


@dataclass(frozen=True)
class Attend:
    """out = attention of Q over the layer's cache, to which K and V are appended first.

    q_norm, k_norm  weights of an RMSNorm, of head_dim: of each head; of as many as Q or K has: of
                    all heads together. Q and K are then turned by RoPE here
    """

    layer: int
    x: str = "qkv"
    out: str = "attn"
    q_norm: str | None = None
    k_norm: str | None = None


@dataclass(frozen=True)
class AddNormed:
    """out += factor * RMSNorm(x): the norm after a block."""

    norm: str
    x: str = "y"
    out: str = "x"
    factor: float = 1.0


@dataclass(frozen=True)
class Choose:
    """Each sequence's next token, its log-probability, and whether it is the last."""

    x: str = "logits"


Instruction = Embed | Project | Attend | AddNormed | Choose


@dataclass(frozen=True)
class Writers:
    """Of an instruction: as whom it writes, who wrote what it reads, and what it adds to.

    A name is the number of the first of the instructions that write one vector together.
    """

    own: int
    x: int | None
    old: int | None


def writers(program: Sequence[Instruction]) -> list[Writers]:
    """Each instruction's: its dependency counters, so to speak."""
    last: dict[str, int] = {}
    found = []
    for i, one in enumerate(program):
        x, out = getattr(one, "x", None), getattr(one, "out", None)
        before = program[i - 1] if i else None
        joins = out is not None and out == getattr(before, "out", None)
        own = last[out] if joins and out is not None else i
        found.append(Writers(own, last.get(x) if x else None, last.get(out) if out else None))
        if out is not None:
            last[out] = own
    return found
