"""What m40llm.sm52 projects for rows of an H100 or an H200, beside what was measured.

    python benchmarks/projected.py benchmarks/results/*-h?00-sm52.jsonl [--only gemm] [--rows]

Needs no GPU, but nvdisasm (`m40llm sm52 --fetch`); each kernel is compiled once, some seconds. The
model is the one that projects for an M40: docs/sm52.md. Rows of other benchmarks are passed over.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any, Final

import numpy as np
from gguf import GGMLQuantizationType as GGMLType
from rich.console import Console
from rich.table import Table

from m40llm.device.ops import Q8Cache
from m40llm.sm52.cards import CARDS, CardSpec
from m40llm.sm52.code import code_of
from m40llm.sm52.counting import counted
from m40llm.sm52.disassembler import find_disassembler
from m40llm.sm52.imagined import ImaginedCard, ImaginedOps, Launch
from m40llm.sm52.projection import Projection, project

CARD_OF: Final = {  # by what the driver calls it
    "NVIDIA H100 80GB HBM3": CARDS["h100"],
    "NVIDIA H200": CARDS["h200"],
}
Shape = dict[str, Any]


def gemm(ops: ImaginedOps, shape: Shape) -> None:
    n_tokens, n_rows, n_cols = (shape[key] for key in ("n_tokens", "n_rows", "n_cols"))
    w = ops.matrix(GGMLType[shape["type"]], n_rows, n_cols, np.empty(0, np.uint8))
    x = ops.empty((n_tokens, n_cols), shape.get("x", "float32"))
    ops.matmul(w, x, out=ops.empty((n_tokens, n_rows)))


def rms_norm(ops: ImaginedOps, shape: Shape) -> None:
    if shape["form"] != "add_rms_norm":
        x = ops.empty(tuple(shape["shape"]))
        ops.rms_norm(x, ops.empty(x.shape[-1:]), 1e-5, out=ops.empty(x.shape))


def scale(ops: ImaginedOps, shape: Shape) -> None:
    x = ops.empty((shape["n_tokens"], shape["n_cols"]))
    if shape["form"] == "scale":
        ops.scale(x, 2.0)
    else:
        ops.add_scaled(x, ops.empty(x.shape), 2.0)


def attention_prefill(ops: ImaginedOps, shape: Shape) -> None:
    n_tokens = shape["n_tokens"]
    attention(ops, shape, np.arange(n_tokens, dtype=np.int32), 1, n_tokens)


def attention_decode(ops: ImaginedOps, shape: Shape) -> None:
    n_seqs, n_keys = shape["batch"], shape["n_keys"]
    attention(ops, shape, np.full(n_seqs, n_keys - 1, np.int32), n_seqs, n_keys)


def attention(ops: ImaginedOps, shape: Shape, pos: Any, n_seqs: int, n_keys: int) -> None:
    ops.card.positions = pos
    n_tokens, head_dim = len(pos), shape["head_dim"]
    cache = (n_seqs, shape["n_kv_heads"], n_keys, head_dim)

    def new_cache() -> Any:
        if shape.get("cache") != "Q8_0":
            return ops.empty(cache, np.float16)
        return Q8Cache(ops.empty(cache, np.int8), ops.empty((*cache[:3], head_dim // 32), "f2"))

    q = ops.empty((n_tokens, shape["n_heads"], head_dim))
    rows = ops.empty((n_tokens,), np.int32), ops.empty((n_tokens,), np.int32)
    how: dict[str, Any] = {"scale": 1.0, "window": 0, "softcap": 0.0}
    ops.attention(
        *(q, new_cache(), new_cache(), *rows),
        single_rows=n_seqs == n_tokens, out=ops.empty(q.shape), **how,
    )  # fmt: skip


BENCHES: Final[dict[str, Callable[[ImaginedOps, Shape], None]]] = {
    "gemm": gemm,
    "gemv": gemm,
    "rms_norm": rms_norm,
    "scale": scale,
    "attention_prefill": attention_prefill,
    "attention_decode": attention_decode,
}


def launches(row: dict[str, Any], spec: CardSpec) -> list[Launch]:
    """What the benchmark of this row launches; nothing where it is not known here."""
    card = ImaginedCard(spec)
    if row["bench"] in BENCHES and row["median"] and not row["case"].startswith("swiglu"):
        BENCHES[row["bench"]](ImaginedOps(card), row["shape"])
    return card.launches


def projected(
    paths: list[Path], only: str, *, count: bool = False
) -> Iterator[tuple[dict[str, Any], Projection]]:
    tool = find_disassembler()
    assert tool is not None, "no nvdisasm: m40llm sm52 --fetch"
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            spec = CARD_OF.get(row["device"])
            if spec is None or only not in f"{row['bench']} {row['case']}":
                continue
            for launch in launches(row, spec):
                code = code_of(launch.kernel, launch.arg_types, spec.capability, tool)
                yield row, project(launch, code, spec, counted(launch) if count else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--only", default="", help="rows whose benchmark and case hold this")
    parser.add_argument("--rows", action="store_true", help="each row, not only what comes of all")
    parser.add_argument("--count", action="store_true", help="what the emulator counts, too")
    args = parser.parse_args()
    found = defaultdict(list)
    for row, projection in projected(args.paths, args.only, count=args.count):
        low, high = (1e6 * end for end in (projection.seconds.low, projection.seconds.high))
        found[row["bench"]].append((row["median"], low, high))
        if args.rows:
            told = f"{row['median']:10.1f} us, projected {low:.1f} to {high:.1f}"
            print(f"{told}, {projection.bound}: {row['bench']} {row['case']}")
    table = Table("kernel", "rows", "within", "measured / middle", "least", "most")
    for bench, times in found.items():
        within = sum(low <= measured <= high for measured, low, high in times)
        ratios = [measured / geometric_mean((low, high)) for measured, low, high in times]
        ends = (f"{ratio:.2f}" for ratio in (median(ratios), min(ratios), max(ratios)))
        table.add_row(bench, str(len(times)), str(within), *ends)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
