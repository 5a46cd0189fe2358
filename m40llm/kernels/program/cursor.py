"""A warp's way through a product: which group of rows, which chunk of columns comes next.

A block has the groups first to end - 1. It takes them a panel at a time, a panel's columns a stage
at a time: a segment. The items of a segment, a group by a chunk each, are dealt out to the warps
in turn. A cursor is (segment, group, chunk); past the last item its segment is n_segments.

    segment, group, chunk = advance(segment, group, chunk, ...)
"""

from typing import Any, NamedTuple

from numba import cuda, int32, uint32

from m40llm.kernels.program.form import N_WARPS


class Extent(NamedTuple):
    """What a block has to do: groups, chunks of a row, chunks of a stage, groups of a panel."""

    first_group: Any
    end_group: Any
    n_chunks: Any
    stage_chunks: Any
    n_stages: Any
    n_segments: Any


@cuda.jit(device=True, forceinline=True)
def segment_of(extent: Any, segment: Any, panel_groups: Any) -> Any:
    """(first group, end group, first chunk, end chunk) of a segment."""
    panel = int32(uint32(segment) // uint32(extent.n_stages))
    stage = int32(segment - panel * extent.n_stages)
    first_group = int32(extent.first_group + panel * panel_groups)
    end_group = int32(min(first_group + panel_groups, extent.end_group))
    first_chunk = int32(stage * extent.stage_chunks)
    return (
        first_group,
        end_group,
        first_chunk,
        int32(min(first_chunk + extent.stage_chunks, extent.n_chunks)),
    )


@cuda.jit(device=True, forceinline=True)
def enter(extent: Any, segment: Any, panel_groups: Any, warp: Any) -> Any:
    """The warp's first item of this segment or the next that has one."""
    while segment < extent.n_segments:
        first_group, end_group, first_chunk, end_chunk = segment_of(extent, segment, panel_groups)
        n = uint32(end_chunk - first_chunk)
        down = uint32(warp) // n
        group = int32(first_group + int32(down))
        if group < end_group:
            return segment, group, int32(first_chunk + int32(uint32(warp) - down * n))
        segment = int32(segment + 1)
    return segment, int32(0), int32(0)


@cuda.jit(device=True, forceinline=True)
def advance(extent: Any, segment: Any, group: Any, chunk: Any, panel_groups: Any, warp: Any) -> Any:
    """The warp's next item."""
    _, end_group, first_chunk, end_chunk = segment_of(extent, segment, panel_groups)
    n = int32(end_chunk - first_chunk)
    chunk = int32(chunk + N_WARPS)
    while chunk >= end_chunk and group < end_group:
        chunk = int32(chunk - n)
        group = int32(group + 1)
    if group < end_group:
        return segment, group, chunk
    return enter(extent, int32(segment + 1), panel_groups, warp)
