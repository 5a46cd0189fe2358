"""`m40llm bench tune`: which tiles this card multiplies fastest with, kept for later runs."""

from typing import TYPE_CHECKING, Annotated

import typer

from m40llm.cli import options as opt
from m40llm.cli.bench_arguments import (
    Shape,
    Types,
    as_gpu_ops,
    check_compiler,
    gpu_ops,
    names,
    not_beside_model,
    numbers,
)
from m40llm.cli.guard import guarded
from m40llm.cli.output import print_json, progress_bar, status, table

if TYPE_CHECKING:
    from m40llm.bench.tune import TunedRow
    from m40llm.model.transformer import Transformer
    from m40llm.progress import Progress

_OF_MODEL = "whose own shapes and types are timed"


@guarded
def tune(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="A model's own matrices, in place of --shape and --type.",
            show_default=False,
        ),
    ] = None,
    shape: Shape = None,
    type: Types = None,
    tokens: Annotated[
        str, typer.Option(metavar="N,...", help="Tokens multiplied at a time, from 9.")
    ] = "16,32,64,128,256,512",
    device: opt.Device = "cuda",
    as_json: opt.AsJson = False,
    debug: opt.Debug = False,
) -> None:
    """Measure which tiles are fastest for a model's matrix products, and keep them for this card.

    Without it a model of the card says which, from its multiprocessors and instruction counts. The
    choices are kept in the cache folder, for this card, driver and version; every later run takes
    them. Each product is verified before it is timed. Half a minute to two on a fast card.

    \b
    Examples:
      m40llm bench tune --shape 1b --type F16,Q4_K_M
      m40llm bench tune model.gguf
      m40llm bench tune --shape 8b --tokens 512 --json
    """
    check_compiler()
    sizes = numbers("tokens", tokens, 9)  # fewer are gemv's
    with progress_bar() as progress:
        if model is None:
            rows = _rows(shape or "1b", type or "F16", sizes, device, progress)
        else:
            not_beside_model({"shape": shape, "type": type}, _OF_MODEL)
            rows = _rows_of_model(model, sizes, device, progress)
    if as_json:
        print_json({"rows": [row.as_json() for row in rows]})
    else:
        print(_shown(rows))


def _rows(
    shape: str, type: str, tokens: list[int], device: str, progress: "Progress"
) -> "list[TunedRow]":
    from m40llm.bench.shapes import TYPES, shape_of
    from m40llm.bench.synthetic import synthetic_model

    hp, kinds = shape_of(shape), names("type", type, TYPES)
    ops, rows = gpu_ops(device, progress), []
    for kind in kinds:
        model = synthetic_model(ops, hp, kind, n_seqs=1, max_seq_len=16, progress=progress)
        rows += _tuned(model, tokens, progress)
        del model  # before the next one takes its memory
    return rows


def _rows_of_model(
    name: str, tokens: list[int], device: str, progress: "Progress"
) -> "list[TunedRow]":
    from m40llm.llm import LLM
    from m40llm.model.transformer import Transformer

    with LLM.load(
        name, device=device, cublas=False if device.startswith("cuda") else None,
        max_seq_len=16, progress=progress, decode="host",
    ) as llm:  # fmt: skip
        model = llm.transformer
        assert isinstance(model, Transformer), "one device has all layers"
        return _tuned(model, tokens, progress)


def _tuned(model: "Transformer", tokens: list[int], progress: "Progress") -> "list[TunedRow]":
    from m40llm.bench.tune import tune as tune_products

    tuned = as_gpu_ops(model.ops).tuned
    status(f"device: {model.ops.name}")
    rows: list[TunedRow] = []
    try:
        rows.extend(tune_products(model, tokens, progress))
    finally:  # Ctrl-C: what has been measured is not lost
        if rows:
            tuned.save()
            status(f"kept {len(rows)} choices for this card: {tuned.path}")
    return rows


def _shown(rows: "list[TunedRow]") -> str:
    head = ("type", "tokens", "rows", "columns", "by the model", "us", "tuned", "us", "gain")
    lines = [
        (
            *(row.type, row.n_tokens, row.n_rows, row.n_cols),
            *(row.choice, f"{row.us:.1f}", row.tuned, f"{row.tuned_us:.1f}"),
            f"{100 * (row.us / row.tuned_us - 1):.1f} %",
        )
        for row in rows
    ]
    return table([head, *lines], indent=0)
