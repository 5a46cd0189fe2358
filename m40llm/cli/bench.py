"""`m40llm bench`: what this card does with a model, verified before it is timed."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

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
from m40llm.errors import RequestError

if TYPE_CHECKING:
    from m40llm.bench.decode import Row
    from m40llm.model.transformer import Transformer
    from m40llm.progress import Progress

bench_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_DRAWN = {"shape": "1b", "type": "F16", "batch": "1"}  # what --help says of the defaults
_OF_MODEL = "whose own shape and types are timed, in one sequence"
MAX_BATCH = 64  # kernels/program/ends.py says why
_MARGIN = 8  # tokens of context beyond those that are timed


@bench_app.callback()
def root() -> None:
    """Measure this card: decode, the tiles of its matrix products, or all, as a file to send.

    \b
    Examples:
      m40llm bench decode --shape 1b --type Q4_0
      m40llm bench tune --shape 1b --type Q4_K_M
      m40llm bench report
      m40llm bench decode --help
    """


@bench_app.command(short_help="Tokens a second, of a real shape with drawn weights.")
@guarded
def decode(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="A model's own weights, in place of --shape, --type and --batch.",
            show_default=False,
        ),
    ] = None,
    shape: Shape = None,
    type: Types = None,
    form: Annotated[
        str | None,
        typer.Option(
            metavar="FORM,...",
            help="eager, graph or persistent.  [default: persistent, or graph where that is not]",
            show_default=False,
        ),
    ] = None,
    kv: Annotated[
        str, typer.Option(metavar="N,...", help="Tokens in the cache before the first.")
    ] = "0",
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="N,...",
            help=f"Sequences decoded together, up to {MAX_BATCH}.  [default: 1]",
            show_default=False,
        ),
    ] = None,
    tokens: Annotated[int, typer.Option(min=4, metavar="N", help="Tokens of each sequence.")] = 128,
    device: opt.Device = "cuda",
    as_json: opt.AsJson = False,
    debug: opt.Debug = False,
) -> None:
    """Time decode, of a model or with synthetic weights of a real shape: no file is needed.

    Each row is verified in the run that times it: its tokens are those of one launch an
    instruction, bit for bit, and those of the transformer's own ops. The share is of the read
    bandwidth, which is measured first; a step reads each weight once.

    \b
    Examples:
      m40llm bench decode --shape 1b --type F16,Q8_0,Q4_0,Q4_K_M
      m40llm bench decode --shape 8b --type Q4_K_M --kv 0,4096 --batch 1,8
      m40llm bench decode --shape 135m --form eager,graph,persistent --json
      m40llm bench decode model.gguf --kv 0,1000
    """
    check_compiler()
    from m40llm.device.decoder import FORMS

    forms = [] if form is None else names("form", form, FORMS)
    what = _What(forms, numbers("kv", kv, 0), tokens)
    drawn = {"shape": shape, "type": type, "batch": batch}
    if model is None:
        given = {name: text for name, text in drawn.items() if text is not None}
        rows = _rows(*_checked(**{**_DRAWN, **given}), what, device)
    else:
        not_beside_model(drawn, _OF_MODEL)
        rows = _rows_of_model(model, what, device)
    if as_json:
        print_json({"rows": [row.as_json() for row in rows]})
    else:
        print(_shown(rows))


def _checked(shape: str, type: str, batch: str) -> tuple[str, list[str], list[int]]:
    """What is to be drawn: the shape, and the types and numbers of sequences."""
    from m40llm.bench.shapes import TYPES, shape_of

    shape_of(shape)
    types, batches = names("type", type, TYPES), numbers("batch", batch, 1)
    if odd := [n for n in batches if n > MAX_BATCH]:
        raise RequestError(f"batch: expected numbers up to {MAX_BATCH}, got {odd[0]}")
    return shape, types, batches


@dataclass(frozen=True)
class _What:
    """To be timed of each model.

    forms  empty: the one that is likely the fastest
    """

    forms: list[Any]
    lengths: list[int]
    tokens: int

    @property
    def max_seq_len(self) -> int:
        return max(self.lengths) + self.tokens + _MARGIN


def _rows(
    shape: str, types: list[str], batches: list[int], what: _What, device: str
) -> "list[Row]":
    from m40llm.bench.shapes import shape_of
    from m40llm.bench.synthetic import synthetic_model

    rows = []
    with progress_bar() as progress:
        ops = gpu_ops(device, progress)
        rate = _read_rate(ops)
        for kind in types:
            for n_seqs in batches:
                model = synthetic_model(
                    *(ops, shape_of(shape), kind),
                    n_seqs=n_seqs,
                    max_seq_len=what.max_seq_len,
                    progress=progress,
                )
                rows += _timed(model, (shape, kind), what, rate, progress)
                del model  # before the next one takes its memory
    return rows


def _rows_of_model(name: str, what: _What, device: str) -> "list[Row]":
    import numpy as np

    from m40llm.bench.synthetic import fill_cache
    from m40llm.llm import LLM
    from m40llm.model.transformer import Transformer

    with (
        progress_bar() as progress,
        LLM.load(
            name, device=device, cublas=False,
            max_seq_len=what.max_seq_len, progress=progress, decode="host",
        ) as llm,
    ):  # fmt: skip
        model = llm.transformer
        assert isinstance(model, Transformer), "one device has all layers"
        as_gpu_ops(model.ops)
        fill_cache(model, np.random.default_rng(0))
        rate = _read_rate(model.ops)
        of_model = llm.path.name, model.weights.layers[0].attn_output.type.name
        return _timed(model, of_model, what, rate, progress)


def _timed(
    model: "Transformer",
    of_model: tuple[str, str],
    what: _What,
    rate: float | None,
    progress: "Progress",
) -> "list[Row]":
    from m40llm.bench.decode import likely_form, time_decode

    return [
        time_decode(model, of_model, form, kv, what.tokens, rate, progress)
        for kv in what.lengths
        for form in what.forms or [likely_form(model)]
    ]


def _read_rate(ops: Any) -> float | None:
    """The card's read bandwidth in bytes a second; None on the emulator."""
    from m40llm.bench.reading import read_bytes_per_s

    rate = None if ops.name == "emulator" else read_bytes_per_s(ops.card)
    status(f"device: {ops.name}" + (f", reads {rate / 1e9:.0f} GB/s" if rate else ""))
    return rate


def _shown(rows: "list[Row]") -> str:
    head = ("shape", "type", "form", "batch", "kv", "tokens/s", "ms a step", "GB a step", "share")
    lines = [
        (
            *(row.model, row.type, row.form, row.n_seqs, row.kv, f"{row.tokens_per_s:.0f}"),
            f"{row.ms:.3f} [{row.ms_p20:.3f}, {row.ms_p80:.3f}]",
            f"{row.bytes_a_step / 1e9:.3f}",
            "" if row.read_share is None else f"{100 * row.read_share:.0f} %",
        )
        for row in rows
    ]
    return table([head, *lines], indent=0)
