"""Which tile a matrix product takes, and how many blocks share one: by a model of its time.

    tile, n_splits = choose(type, n_tokens, n_rows, n_cols, n_sms)

The time of the busiest SM, in cycles: its blocks, as many at a time as it holds, each so many steps
of 16 columns, each so many instructions of each warp, of which four schedulers issue one a cycle if
there are warps enough; and what the sharing of a tile costs. Instructions are counted in the code
for sm_52; the other numbers were fitted to the times of 55 products on an H100, where the choice
takes 0.8 % longer than the best of all that were timed, on the average. Nothing here was measured
on an M40. `m40llm bench tune` measures, and replaces the choice on the card where it ran.
"""

from functools import cache
from typing import Final, NamedTuple

from gguf import GGMLQuantizationType as GGMLType

from m40llm.kernels.contract import ceil_div
from m40llm.kernels.gemm_tiles import BK, Tile
from m40llm.kernels.reduce import WARP_SIZE
from m40llm.kernels.unpack import LANES

TILES: Final = {  # instructions of a warp a step (F16)
    Tile(128, 128): 1140,
    Tile(64, 128): 1173,
    Tile(64, 64): 1178,
    Tile(32, 128): 1205,
    Tile(32, 64, 4): 1217,
    Tile(16, 128, 4): 1288,
}
QUANTS: Final = {  # instructions more than F16's, for eight weights
    GGMLType.Q8_0: 32, GGMLType.Q4_0: 40, GGMLType.Q4_1: 41, GGMLType.Q5_0: 56, GGMLType.Q5_1: 56,
    GGMLType.Q2_K: 63, GGMLType.Q3_K: 93, GGMLType.Q4_K: 55, GGMLType.Q5_K: 70, GGMLType.Q6_K: 72,
    GGMLType.IQ4_NL: 40, GGMLType.IQ4_XS: 51, GGMLType.MXFP4: 37,
}  # fmt: skip
SPLITS: Final = (1, 2, 3, 4, 6, 8, 12, 16)
TAIL_SPLITS: Final = 6  # with 5 some products are 0.5 % faster, others 2.5 % slower (H100)
FEW_TOKENS: Final = 128  # up to here tiles of groups were timed
MIN_STEPS: Final = 3  # of a group of threads: with fewer, its start and its end are all there is
WAVES: Final = 2.2  # blocks that share tiles, in blocks that a card holds
_BEGIN_STEPS: Final = 1.2  # a block's begin and end, in steps
_SHARE: Final = ((4, 0.455), (8, 0.9), (12, 1.0))  # of the slots that so many warps can use
_SPLIT_CYCLES: Final = 290.0  # where tiles are shared; of the last block, which adds up what all
_SPLIT_WARP_CYCLES: Final = 13.7  # have left, for each of them and each of its own warps;
_SPLIT_FLOAT_CYCLES: Final = 5.95e-3  # and for each float of a workspace, over all SMs of an H100
_H100_SMS: Final = 132


class Choice(NamedTuple):
    tile: Tile
    n_splits: int


def registers_of(type: GGMLType, tile: Tile) -> int:
    """More than the tile's where quants, and what scales them, would spill."""
    if LANES[type].n_highs:
        return 208 if tile.n_groups > 1 else 168
    if type == GGMLType.Q4_K and tile.w_eights > 1:
        return 208 if tile.w_eights > 4 else 168
    return tile.registers


def resident_blocks(type: GGMLType, tile: Tile) -> int:
    """Of this tile, on an SM: each of its four schedulers has 16,384 registers for its warps."""
    n_warps = 4 * (16384 // (registers_of(type, tile) * WARP_SIZE))
    return n_warps * WARP_SIZE // tile.n_threads


def block_slots(type: GGMLType, tile: Tile, n_sms: int) -> int:
    """Blocks of this tile that a card holds at a time."""
    return n_sms * resident_blocks(type, tile)


def tail(tile: Tile, n_tiles: int, n_cols: int, n_sms: int) -> tuple[int, int]:
    """(n_whole, n_splits): of more tiles than the card holds blocks, those from n_whole on are
    shared by so many blocks each, so that no multiprocessor waits long for the last."""
    n_whole = n_tiles // n_sms * n_sms
    n_steps = ceil_div(n_cols, BK) // tile.n_groups
    if n_whole == n_tiles or n_steps < MIN_STEPS * TAIL_SPLITS:
        return n_tiles, 1
    return n_whole, TAIL_SPLITS


def _share_of_slots(n_warps: int) -> float:
    """Of an SM's issue slots that so many resident warps can use."""
    below = (0, 0.0)
    for point in _SHARE:
        if n_warps <= point[0]:
            (n0, share0), (n1, share1) = below, point
            return share0 + (share1 - share0) * (n_warps - n0) / (n1 - n0)
        below = point
    return 1.0


def cycles(
    choice: Choice, type: GGMLType, n_tokens: int, n_rows: int, n_cols: int, n_sms: int
) -> float:
    """The model's time of a product."""
    tile, n_splits = choice
    n_blocks = n_splits * tile.n_tiles(n_tokens, n_rows)
    n_warps = tile.n_threads // 32
    steps = ceil_div(ceil_div(n_cols, BK), n_splits * tile.n_groups) + _BEGIN_STEPS
    resident = resident_blocks(type, tile)
    rounds, rest = divmod(ceil_div(n_blocks, n_sms), resident)
    slots = rounds * resident * n_warps / _share_of_slots(resident * n_warps)
    if rest:
        slots += rest * n_warps / _share_of_slots(rest * n_warps)
    busiest = slots * steps * (TILES[tile] + QUANTS.get(type, 0) * tile.w_eights) / 4
    if n_splits == 1:
        return busiest
    n_floats = n_blocks * tile.n_outputs
    adding = _SPLIT_CYCLES + n_splits * n_warps * _SPLIT_WARP_CYCLES
    return busiest + adding + n_floats * _SPLIT_FLOAT_CYCLES * _H100_SMS / n_sms


@cache
def choose(type: GGMLType, n_tokens: int, n_rows: int, n_cols: int, n_sms: int) -> Choice:
    """What the model says is fastest."""
    return candidates(type, n_tokens, n_rows, n_cols, n_sms)[0]


def candidates(type: GGMLType, n_tokens: int, n_rows: int, n_cols: int, n_sms: int) -> list[Choice]:
    """All that are worth a thought, the fastest by the model first."""
    return sorted(
        _choices(type, n_tokens, n_rows, n_cols, n_sms),
        key=lambda c: cycles(c, type, n_tokens, n_rows, n_cols, n_sms),
    )


def _choices(type: GGMLType, n_tokens: int, n_rows: int, n_cols: int, n_sms: int) -> list[Choice]:
    found = []
    for tile in TILES:
        if tile.n_groups > 1 and n_tokens > FEW_TOKENS:
            continue
        n_tiles = tile.n_tiles(n_tokens, n_rows)
        n_steps = ceil_div(n_cols, BK) // tile.n_groups
        slots = WAVES * n_sms * resident_blocks(type, tile)
        for n_splits in SPLITS:
            is_worth = n_steps // n_splits >= MIN_STEPS and n_tiles * n_splits <= slots
            if n_splits == 1 or is_worth:
                found.append(Choice(tile, n_splits))
    return found
