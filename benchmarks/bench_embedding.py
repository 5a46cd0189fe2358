"""Embedding rows of every table type, and take_rows, against torch.nn.functional.embedding."""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from bounds import equal
from cases import Arrays, Case, Scale, poison
from gguf import GGMLQuantizationType as GGMLType
from harness import MAX_SETS, main
from rivals import Rival, randn

from m40llm.gguf.blocks import dequantize, row_bytes
from m40llm.kernels.embedding import embedding, take_rows
from m40llm.kernels.quant_blocks import WEIGHT_OF
from m40llm.testing.random_blocks import random_tensor

PERIOD = 127  # rows of the table repeat; every set gathers rows of its own
FIRST = [GGMLType[name] for name in ("F16", "Q4_K", "Q8_0", "Q4_0", "Q6_K")]
TYPES = [*FIRST, *(t for t in WEIGHT_OF if t not in FIRST)]
SMALL = [(type, 300, 256, 2) for type in (GGMLType.Q4_0, GGMLType.F16)]
LARGE = [(type, 128256, 2048, n) for type in FIRST for n in (1, 512)] + [
    (type, 128256, 2048, 512) for type in TYPES[len(FIRST) :]
]


def ids_of(n_tokens: int, vocab_size: int) -> np.ndarray:
    """int32[MAX_SETS, n_tokens]"""
    return np.random.default_rng(0).integers(0, vocab_size, (MAX_SETS, n_tokens), np.int32)


def rival_of(vocab_size: int, n_embd: int, n_tokens: int, dtype: str) -> Rival:
    tables: list[Any] = []  # one for all sets, as ours

    def make(torch: Any) -> Any:
        if not tables:
            tables.append(randn(torch, vocab_size, n_embd, dtype=dtype))
        ids = torch.randint(vocab_size, (n_tokens,), device="cuda")
        return lambda: torch.nn.functional.embedding(ids, tables[0])

    return Rival(f"torch embedding {dtype}", make)


def embedding_case(type: GGMLType, vocab_size: int, n_embd: int, n_tokens: int) -> Case:
    few = random_tensor(np.random.default_rng(1), (PERIOD, n_embd), 1.0, type)
    few = np.ascontiguousarray(few).view(np.uint8).reshape(PERIOD, -1)

    def arrays() -> Arrays:
        table = few[np.arange(vocab_size) % PERIOD]
        return {
            "table": table, "ids": ids_of(n_tokens, vocab_size), "out": poison((n_tokens, n_embd)),
        }  # fmt: skip

    return Case(
        name=f"{type.name} {vocab_size}x{n_embd}, {n_tokens} tokens",
        shape={
            "type": type.name, "vocab_size": vocab_size, "n_embd": n_embd, "n_tokens": n_tokens,
        },
        arrays=arrays,
        launch=lambda b, stream: embedding(b["table"], type, b["ids"], b["out"], stream=stream),
        outputs=("out",),
        check=lambda a, got: equal(got["out"], dequantize(type, few)[a["ids"] % PERIOD]),
        bytes_read=n_tokens * (row_bytes(type, n_embd) + 4),
        bytes_written=4 * n_tokens * n_embd,
        rival=rival_of(
            vocab_size, n_embd, n_tokens, "float32" if type == GGMLType.F32 else "float16"
        ),
        stacked=("ids",),
        shared=("table",),
    )  # fmt: skip


def take_rows_case(n: int, n_embd: int, n_rows: int) -> Case:
    def arrays() -> Arrays:
        x = np.random.default_rng(2).standard_normal((n, n_embd), np.float32)
        return {"x": x, "rows": ids_of(n_rows, n), "out": poison((n_rows, n_embd))}

    return Case(
        name=f"take_rows {n_rows} of {n}x{n_embd}",
        shape={"n": n, "n_embd": n_embd, "n_rows": n_rows},
        arrays=arrays,
        launch=lambda b, stream: take_rows(b["x"], b["rows"], b["out"], stream=stream),
        outputs=("out",),
        check=lambda a, got: equal(got["out"], a["x"][a["rows"]]),
        bytes_read=n_rows * (4 * n_embd + 4),
        bytes_written=4 * n_rows * n_embd,
        rival=rival_of(n, n_embd, n_rows, "float32"),
        stacked=("rows",),
        shared=("x",),
    )


def cases(scale: Scale) -> Iterator[Case]:
    yield from (embedding_case(*each) for each in scale.pick(SMALL, LARGE, 4))
    for shape in scale.pick([(30, 257, 3)], [(16384, 4096, 8), (16384, 4096, 512)], 1):
        yield take_rows_case(*shape)


if __name__ == "__main__":
    sys.exit(main("embedding", cases, __doc__))
