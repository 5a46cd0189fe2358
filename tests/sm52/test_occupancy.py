"""Blocks an SM, on figures of CUDA's occupancy calculator for compute capability 5.2."""

import pytest

from m40llm.sm52.cards import CARDS, card_of
from m40llm.sm52.occupancy import Occupancy, occupancy


@pytest.mark.parametrize(
    ("registers", "shared_bytes", "n_threads", "held"),
    [
        (32, 0, 256, Occupancy(8, 64, "registers")),
        (24, 0, 256, Occupancy(8, 64, "warps")),
        (24, 0, 32, Occupancy(32, 32, "blocks")),
        (33, 0, 256, Occupancy(6, 48, "registers")),  # 40 registers, in eights
        (96, 0, 64, Occupancy(10, 20, "registers")),  # 21 warps, in fours
        (128, 33792, 256, Occupancy(2, 16, "registers")),
        (128, 49152, 64, Occupancy(2, 4, "shared memory")),
        (255, 0, 512, Occupancy(0, 0, "registers")),  # 16 warps, of which there are registers for 8
        (16, 1, 100, Occupancy(16, 64, "warps")),
    ],
)
def test_occupancy(registers: int, shared_bytes: int, n_threads: int, held: Occupancy) -> None:
    assert occupancy(registers, shared_bytes, n_threads) == held


def test_shared_memory_that_a_block_takes_beside_its_own() -> None:
    """Hopper keeps 1 KiB of each block's for itself: 228 KiB are 16 of 13 KiB, not 17."""
    assert occupancy(16, 13 * 1024, 32, CARDS["h100"].sm).n_blocks == 16


def test_cards() -> None:
    """Peaks in FP32, as their data sheets state them: 128 lanes an SM, two FLOPs a clock."""
    tflops = {name: 2 * 128 * card.n_sms * card.boost_mhz / 1e6 for name, card in CARDS.items()}
    stated = {"m40-24": 6.8, "m40-12": 6.8, "p40": 11.8, "titan-x": 6.6, "h100": 66.9}
    stated["h200"] = stated["h100"]
    assert {name: round(n, 1) for name, n in tflops.items()} == stated
    assert card_of("m40-12").free == (12 << 30) * 15 // 16 - (256 << 20)
    assert card_of("titan-x").free == (12 << 30) - (256 << 20)
