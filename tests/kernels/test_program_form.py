"""How a product is shared out: numbers that the host works out, with no launch."""

from gguf import GGMLQuantizationType as GGMLType
from hypothesis import given
from hypothesis import strategies as st

from m40llm.kernels.contract import ceil_div
from m40llm.kernels.program import form

TYPES = st.sampled_from([GGMLType[name] for name in ("F32", "F16", "Q8_0", "Q4_0", "Q4_K", "Q6_K")])


@given(
    type=TYPES,
    n_blocks_of_columns=st.integers(1, 120),
    n_seqs=st.sampled_from([4, 8]),
    n_blocks=st.integers(1, 140),
)
def test_slices_have_all_columns_once(
    type: GGMLType, n_blocks_of_columns: int, n_seqs: int, n_blocks: int
) -> None:
    n_cols = 256 * n_blocks_of_columns
    slices = form.slices_of(type, n_cols, n_seqs, n_blocks)
    assert n_blocks % slices.n == 0
    assert slices.n * slices.cols >= n_cols > (slices.n - 1) * slices.cols  # none is empty
    assert slices.cols % form.span_cols(type, n_seqs) == 0
    stage = form.max_stage_cols(n_seqs)
    stages = [
        ceil_div(min(slices.cols, n_cols - first), stage) for first in range(0, n_cols, slices.cols)
    ]
    assert slices.n_stages == max(stages)
    # A part's number is slice * n_stages + stage: so only the last slice may have fewer stages.
    assert stages[:-1] == [slices.n_stages] * (slices.n - 1)
    assert slices.n_parts == sum(stages)


@given(
    type=TYPES, n_groups=st.integers(1, 2000), n_spans=st.integers(1, 64), n_seqs=st.integers(1, 2)
)
def test_items_find_room(type: GGMLType, n_groups: int, n_spans: int, n_seqs: int) -> None:
    chunk = form.chunk_spans(type, n_groups, n_spans, n_seqs)
    n_chunks = ceil_div(n_spans, chunk)
    panel = form.panel_groups(type, n_chunks, n_seqs)
    n_results = form.group_rows(type, n_seqs) * n_seqs
    assert panel >= 1
    assert panel * n_chunks * n_results <= form.PARTIAL_FLOATS
    pending = form.pending_groups(type, n_chunks, n_seqs)
    assert pending * n_results <= form.N_THREADS
    assert pending * n_results // 2 * form.KEPT_WORDS <= form.KEPT_FLOATS
