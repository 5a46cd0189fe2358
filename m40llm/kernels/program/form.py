"""What is fixed when the program's kernel is compiled, and how a block's shared memory is used."""

from dataclasses import dataclass
from typing import Final, Literal

from gguf import GGMLQuantizationType as GGMLType

from m40llm.kernels.contract import ceil_div
from m40llm.kernels.layouts import DENSE
from m40llm.kernels.reduce import WARP_SIZE
from m40llm.kernels.staging import StagedShape
from m40llm.kernels.unpack import LANES

N_WARPS: Final = 16
N_THREADS: Final = N_WARPS * WARP_SIZE
REGISTERS: Final = 128  # of 512 threads: one block takes all of an SM's, on GM200 as on GH100
MAX_TYPES: Final = 4  # of a model's matrices: the code has a product for each

# Shared memory, in float32 words of one pool: x staged, its sums, then partial results.
MAX_STAGE_COLS: Final = 8192  # over all sequences: 14,336 columns take two stages
THREAD_QUADS: Final = MAX_STAGE_COLS // 4 // N_THREADS  # of a stage, over all sequences
NORM_QUADS: Final = 2  # whose weights of a norm a thread has in registers
MAX_NORMED_COLS: Final = 4 * NORM_QUADS * N_THREADS  # of a stage
STAGE_UNIT: Final = 1024  # a stage is a multiple of these: spans of every type divide it
PARTIAL_FLOATS: Final = 1280
# F16 has the widest padding. Partial results lie in one place for all types: they may still be
# read when the next product, of another type, puts its x where it belongs.
PARTIALS_AT: Final = 4 * 2304 + 4
KEPT_AT: Final = PARTIALS_AT + PARTIAL_FLOATS  # see pending.py
KEPT_WORDS: Final = 8  # of a pair
KEPT_FLOATS: Final = 1024
MAX_SLICES: Final = 4  # of a product's columns, see sliced.py
_CHUNKS: Final = 1, 2, 4, 8  # spans that an item may have
RopeLayout = Literal["interleaved", "half"]
QkNorm = Literal["none", "head", "row"]
Activation = Literal["silu", "gelu"]


_MANY_SCALES: Final = (GGMLType.Q4_K, GGMLType.Q5_K, GGMLType.Q6_K)  # words of them a row


def rows_a_lane(type: GGMLType, n_seqs: int) -> int:
    """Rows that share a load of x: as many as there are registers for, two spans at a time."""
    return 2 if n_seqs > 2 or type in _MANY_SCALES else 4


def row_lanes(n_seqs: int) -> int:
    """Neighbouring lanes that have the same columns, of other rows.

    With many sequences the loads of x from shared memory are what takes time, and such a load of
    16 bytes a lane takes 2.6 cycles where two neighbours want the same, 4.2 where none do (H100;
    four alike gain nothing more).
    """
    return 2 if n_seqs > 2 else 1


def group_rows(type: GGMLType, n_seqs: int) -> int:
    """Rows that a warp multiplies at a time."""
    return rows_a_lane(type, n_seqs) * row_lanes(n_seqs)


def is_sliced(n_seqs: int) -> bool:
    """Whether blocks share the columns of a product as well as its rows (sliced.py): with many
    sequences few columns of x find room in shared memory."""
    return n_seqs > 2


@dataclass(frozen=True)
class Form:
    """A model's constants, as far as the code depends on them.

    types       of its matrices, in the order of the operations PRODUCT, PRODUCT + 1, ...
    table_type  of the embedding
    n_seqs      sequences that are decoded together, 1 to 8
    qk_norm     "head": ATTEND norms each head of Q and K, and turns it; "row": all heads of Q
                together, and of K; "none": products turn them
    has_factors embeddings and what is added are multiplied by FACTOR
    activation  of SWIGLU
    has_post_norms  there are instructions ADD_NORMED
    """

    types: tuple[GGMLType, ...]
    table_type: GGMLType
    n_seqs: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    rope_dim: int
    rope_layout: RopeLayout
    qk_norm: QkNorm = "none"
    has_factors: bool = False
    activation: Activation = "silu"
    has_post_norms: bool = False

    @property
    def q_dim(self) -> int:
        return self.n_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        return self.n_kv_heads * self.head_dim

    @property
    def pool_floats(self) -> int:
        """Sliced products have no partial results in shared memory."""
        return PARTIALS_AT if is_sliced(self.n_seqs) else KEPT_AT + KEPT_FLOATS


def span_cols(type: GGMLType, n_seqs: int) -> int:
    """Columns that a warp takes at a time: a load of quants a lane."""
    return WARP_SIZE // row_lanes(n_seqs) * LANES[type].n_cols


def max_stage_cols(n_seqs: int) -> int:
    """Columns of x that fit in shared memory."""
    return MAX_STAGE_COLS // n_seqs


def asked_quads(n_seqs: int) -> int:
    """Quads of x that a thread waits for at a time. One sequence has seldom more than two for it,
    and registers are short."""
    return 2 if n_seqs == 1 else THREAD_QUADS


def stage_cols(n_cols: int, n_seqs: int, is_normed: bool) -> int:
    """Columns of a stage: as few stages as fit, of equal size."""
    most = max_stage_cols(n_seqs)
    n_stages = ceil_div(n_cols, min(most, MAX_NORMED_COLS) if is_normed else most)
    return ceil_div(n_cols, n_stages * STAGE_UNIT) * STAGE_UNIT


def chunk_spans(type: GGMLType, n_groups: int, n_spans: int, n_seqs: int) -> int:
    """Spans of an item, where a block has so many groups of rows and a stage so many spans: of
    those that make for the fewest panels, the one that keeps the busiest warp's share least."""

    def cost(chunk: int) -> tuple[int, int, int]:
        n_chunks = ceil_div(n_spans, chunk)
        n_panels = ceil_div(n_groups, panel_groups(type, n_chunks, n_seqs))
        return n_panels, ceil_div(n_groups * n_chunks, N_WARPS) * chunk, -chunk

    return min(_CHUNKS, key=cost)


def panel_groups(type: GGMLType, n_chunks: int, n_seqs: int) -> int:
    """Groups of rows for whose partial results there is room. n_chunks: items of a group."""
    return PARTIAL_FLOATS // (n_chunks * group_rows(type, n_seqs) * n_seqs)


def pending_groups(type: GGMLType, n_chunks: int, n_seqs: int) -> int:
    """Groups of rows that a block may leave to the next instruction: a thread each result, and room
    for what is kept."""
    n_results = group_rows(type, n_seqs) * n_seqs
    most = min(N_THREADS // n_results, KEPT_FLOATS // KEPT_WORDS // (n_results // 2))
    return min(panel_groups(type, n_chunks, n_seqs), most)


@dataclass(frozen=True)
class Slices:
    """How blocks share the columns of a product. A block has the rows of a group of blocks, and
    the columns of a slice.

    n         slices: neighbouring blocks have the same rows
    cols      of a slice; the last one may have fewer
    n_stages  of a slice
    n_parts   stages of all slices: so many numbers a result is the sum of
    """

    n: int
    cols: int
    n_stages: int
    n_parts: int


def slices_of(type: GGMLType, n_cols: int, n_seqs: int, n_blocks: int) -> Slices:
    """As few slices as make for the fewest stages."""
    stage, unit = max_stage_cols(n_seqs), span_cols(type, n_seqs)
    found = []
    for n in (1, 2, MAX_SLICES):
        cols = ceil_div(n_cols, n * unit) * unit
        n_stages = ceil_div(cols, stage)
        if n_blocks % n == 0 and (n - 1) * cols < n_cols:
            n_last = ceil_div(n_cols - (n - 1) * cols, stage)
            found.append(Slices(n, cols, n_stages, (n - 1) * n_stages + n_last))
    return min(found, key=lambda slices: (slices.n_stages, slices.n))


def leaves(n_groups: int, n_spans: int) -> bool:
    """Whether a block leaves so many groups of so many spans to the next instruction: where its
    warps have several spans each, and so end at different times."""
    return n_groups * n_spans > 2 * N_WARPS


@dataclass(frozen=True)
class Pool:
    """First floats, in the pool, of the parts that a product of this type uses."""

    type: GGMLType
    n_seqs: int

    @property
    def shape(self) -> StagedShape:
        most = max_stage_cols(self.n_seqs)
        return StagedShape(self.type, self.n_seqs, most, MAX_STAGE_COLS)

    @property
    def n_staged(self) -> int:
        return 4 * self.n_seqs * self.shape.token_slots

    @property
    def n_sums(self) -> int:
        return 4 if self.type in DENSE else self.n_seqs * self.shape.token_sums

    def check(self) -> None:
        n_floats = self.n_staged + self.n_sums
        assert n_floats <= PARTIALS_AT, f"{self}: {n_floats} floats"
