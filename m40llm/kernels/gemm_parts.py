"""Which part of out a block makes, and of which columns.

Plain: the grid is tiles along the rows, tiles along the tokens, blocks that share each tile.

In bands, of a product of more tiles than the card holds blocks: blocks that run at the same time
have up to BAND tiles of tokens and as few of rows as that leaves, and share what they load. Tiles
from `n_whole` on, which would leave multiprocessors idle at the end, are shared by `n_splits`
blocks each.
"""

from functools import cache
from typing import Any, Final, NamedTuple

from numba import cuda, int32, uint32

from m40llm.kernels.gemm_tiles import Tile
from m40llm.kernels.hints import pinned
from m40llm.kernels.intrinsics import load_volatile_shared

BAND: Final = 8


class Part(NamedTuple):
    """A tile's corner; which of the shared tiles it is; which share of its columns, of how many."""

    first_token: Any
    first_row: Any
    shared: Any
    split: Any
    n_splits: Any


N_KEPT: Final = len(Part._fields)


@cache
def part_of(tile: Tile, in_bands: bool) -> tuple[Any, Any]:
    """find_part(kept, n_tokens, n_rows, n_whole, n_splits) -> Part
    part_again(kept, t) -> (Part, t)

    kept   shared int32[N_KEPT]: what took divisions to find stays there, since the loop in between
           needs all registers. So t is given back as a number that the compiler does not know:
           what it made of it before the loop, it makes again
    """
    tile_tokens, tile_rows = tile.n_tokens, tile.n_rows

    @cuda.jit(device=True, forceinline=True)
    def plain_part() -> Any:
        across, down = uint32(cuda.blockIdx.x), uint32(cuda.blockIdx.y)
        return Part(
            int32(int32(down) * tile_tokens),
            int32(int32(across) * tile_rows),
            uint32(down * uint32(cuda.gridDim.x) + across),
            uint32(cuda.blockIdx.z),
            uint32(cuda.gridDim.z),
        )

    @cuda.jit(device=True, forceinline=True)
    def find_plain(kept: Any, n_tokens: Any, n_rows: Any, n_whole: Any, n_splits: Any) -> Any:
        return plain_part()

    @cuda.jit(device=True, forceinline=True)
    def plain_again(kept: Any, t: Any) -> Any:
        return plain_part(), t

    @cuda.jit(device=True, forceinline=True)
    def band_part(kept: Any) -> Any:
        # Volatile: LLVM would keep them in registers after all.
        return Part(
            load_volatile_shared(kept, 0),
            load_volatile_shared(kept, 1),
            uint32(load_volatile_shared(kept, 2)),
            uint32(load_volatile_shared(kept, 3)),
            uint32(load_volatile_shared(kept, 4)),
        )

    @cuda.jit(device=True, forceinline=True)
    def find_in_band(kept: Any, n_tokens: Any, n_rows: Any, n_whole: Any, n_splits: Any) -> Any:
        if cuda.threadIdx.x == 0:
            n_high = uint32(uint32(n_tokens + tile_tokens - 1) // uint32(tile_tokens))
            n_wide = uint32(uint32(n_rows + tile_rows - 1) // uint32(tile_rows))
            which, split, n_sharing = uint32(cuda.blockIdx.x), uint32(0), uint32(1)
            if which >= uint32(n_whole):
                n_sharing = uint32(n_splits)
                rest = uint32(which - uint32(n_whole))
                split = uint32(rest % n_sharing)
                which = uint32(uint32(n_whole) + rest // n_sharing)
            of_band = uint32(uint32(BAND) * n_wide)
            first = uint32(uint32(which // of_band) * uint32(BAND))
            high = min(uint32(BAND), uint32(n_high - first))
            inside = uint32(which % of_band)
            kept[0] = int32(uint32(first + inside % high) * uint32(tile_tokens))
            kept[1] = int32(uint32(inside // high) * uint32(tile_rows))
            kept[2] = int32(which - uint32(n_whole))
            kept[3] = int32(split)
            kept[4] = int32(n_sharing)
        cuda.syncthreads()
        return band_part(kept)

    @cuda.jit(device=True, forceinline=True)
    def band_again(kept: Any, t: Any) -> Any:
        return band_part(kept), uint32(pinned(t))

    return (find_in_band, band_again) if in_bands else (find_plain, plain_again)
