"""The steps of the ladder, one after another: each verified, then timed beside cuBLAS in FP32.

python benchmarks/ladder/climb.py [--out rows.jsonl] [--device emulator] [--quick]
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the benchmarks' own modules

import step_1
import step_2
import step_3
import step_4
import step_5
import step_6
from cases import Arrays, Case, Scale, poison
from gguf import GGMLQuantizationType as GGMLType
from harness import main
from matrices import on_card, planes_of, product_and_bound, share_of_repeats, vectors, weight_bytes
from rivals import Rival, randn

from m40llm.kernels.gemm import gemm
from m40llm.kernels.gemm_tiles import Tile

Launch = Callable[[Any, Any], None]
F16 = GGMLType.F16
STEPS: dict[str, Launch] = {
    f"{number} {name}": lambda b, stream, step=step: step.launch(
        b["quants"], b["x"], b["out"], stream
    )
    for number, (name, step) in enumerate(
        (
            *(("a thread an output", step_1), ("shared memory", step_2), ("4 x 4 sums", step_3)),
            *(("8 x 8 sums, 16 bytes", step_4), ("two buffers", step_5), ("to and fro", step_6)),
        ),
        start=1,
    )
}


def the_product(b: Any, stream: Any) -> None:
    w = on_card(F16, b["x"].shape[1], b)
    gemm(w, b["x"], b["out"], stream=stream, tile=Tile(128, 128))


STEPS["7 banks of registers: the product"] = the_product


def case_of(step: str, launch: Launch, size: int) -> Case:
    def arrays() -> Arrays:
        return {**planes_of(F16, size, size), "x": vectors(size, size), "out": poison((size, size))}

    def make(torch: Any) -> Any:
        x, w, out = (randn(torch, size, size) for _ in range(3))
        return lambda: torch.mm(x, w.T, out=out)

    return Case(
        name=f"{step}, {size}^3",
        shape={"step": step, "size": size},
        arrays=arrays,
        launch=launch,
        outputs=("out",),
        check=lambda a, got: share_of_repeats(got["out"], *product_and_bound(F16, a["x"])),
        bytes_read=weight_bytes(F16, size, size) + 4 * size * size,
        bytes_written=4 * size * size,
        n_flops=2 * size**3,
        rival=Rival("torch.mm float32 (cuBLAS, no TF32)", make),
    )


def cases(scale: Scale) -> Iterator[Case]:
    (size,) = scale.pick([128], [4096], 1)
    yield from (case_of(step, launch, size) for step, launch in STEPS.items())


if __name__ == "__main__":
    sys.exit(main("ladder", cases, __doc__))
