"""What is fixed when the program's kernel is compiled, and how a block's shared memory is used."""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from gguf import GGMLQuantizationType as GGMLType

from m40llm.kernels.planes import DENSE
from m40llm.kernels.reduce import WARP_SIZE
from m40llm.kernels.staging import StagedShape

N_WARPS: Final = 16
N_THREADS: Final = N_WARPS * WARP_SIZE
REGISTERS: Final = 128  # of 512 threads: one block takes all of an SM's, on GM200 as on GH100
MAX_SEQS: Final = 8
CHUNK_COLS: Final = 1024  # of a warp's item of work
PANEL_RESULTS: Final = N_THREADS  # a thread adds up one result

# Shared memory, in float32 words of one pool: x staged, its sums, then partial results.
STAGE_FLOATS: Final = 7168  # of x, over all sequences: 14,336 columns take two stages
POOL_FLOATS: Final = 11968  # 47,872 bytes; the kernel's other arrays take less than 1,280
RopeLayout = Literal["interleaved", "half"]


_MANY_SCALES: Final = (GGMLType.Q4_K, GGMLType.Q5_K, GGMLType.Q6_K)  # words of them a row


def rows_a_warp(type: GGMLType, n_seqs: int) -> int:
    """Rows that share a load of x: as many as there are registers for, two items of each."""
    return 2 if n_seqs > 2 or type in _MANY_SCALES else 4


@dataclass(frozen=True)
class Form:
    """A model's constants, as far as the code depends on them.

    types       of its matrices, in the order of the operations PRODUCT, PRODUCT + 1, ...
    table_type  of the embedding
    n_seqs      sequences that are decoded together, 1 to 8
    """

    types: tuple[GGMLType, ...]
    table_type: GGMLType
    n_seqs: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    rope_dim: int
    rope_layout: RopeLayout

    @property
    def q_dim(self) -> int:
        return self.n_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        return self.n_kv_heads * self.head_dim


def max_stage_cols(n_seqs: int) -> int:
    """Columns of x that fit in shared memory together with their partial results."""
    return max(STAGE_FLOATS // n_seqs // CHUNK_COLS, 1) * CHUNK_COLS


def stage_cols(n_cols: int, n_seqs: int) -> int:
    """Columns of a stage: as few stages as fit, of equal size."""
    n_stages = -(-n_cols // max_stage_cols(n_seqs))
    return -(-n_cols // (n_stages * CHUNK_COLS)) * CHUNK_COLS


@dataclass(frozen=True)
class Pool:
    """First floats, in the pool, of the parts that a product of this type uses."""

    type: GGMLType
    n_seqs: int

    @property
    def shape(self) -> StagedShape:
        most = max_stage_cols(self.n_seqs)
        return StagedShape(self.type, self.n_seqs, most, most * self.n_seqs)

    @property
    def n_staged(self) -> int:
        return 4 * self.n_seqs * self.shape.token_slots

    @property
    def n_sums(self) -> int:
        return 4 if self.type in DENSE else self.n_seqs * self.shape.token_sums

    @property
    def n_partials(self) -> int:
        return PANEL_RESULTS * (max_stage_cols(self.n_seqs) // CHUNK_COLS)

    def check(self) -> None:
        n_floats = self.n_staged + self.n_sums + self.n_partials
        assert n_floats <= POOL_FLOATS, f"{self}: {n_floats} floats"


NO_KEY: Final = np.int64(-1)
