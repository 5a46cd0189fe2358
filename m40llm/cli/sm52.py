"""`m40llm sm52`: what a model will do on a card that is not here, projected from its code."""

from typing import Annotated, Any

import typer

from m40llm.cli import options as opt
from m40llm.cli.bench_arguments import check_compiler
from m40llm.cli.guard import guarded
from m40llm.cli.output import print_json, progress_bar, status
from m40llm.cli.sm52_shown import comparison_text, projection_text

_CARDS = (
    "m40-24",
    "m40-12",
    "p40",
    "titan-x",
    "h100",
    "h200",
)  # those of sm52/cards.py; a test compares
_N_TOKENS = 512


def _check_card(value: str | None) -> str | None:
    if value is not None and value not in _CARDS:
        raise typer.BadParameter(f"expected {', '.join(_CARDS)}, got {value!r}")
    return value


ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help=opt.MODEL_HELP,
        show_default=False,
    ),
]
Measured = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="In place of MODEL, a report of `m40llm bench report`: what was measured on its card "
        "beside what is projected for that.",
        show_default=False,
    ),
]
Card = Annotated[
    str | None,
    typer.Option(
        metavar="|".join(_CARDS),
        help=f"Which card.  [default: {_CARDS[0]}]",
        callback=_check_card,
        show_default=False,
    ),
]
Context = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="N",
        help=f"Tokens in the cache where one is decoded.  [default: {_N_TOKENS}]",
        show_default=False,
    ),
]
PromptTokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help=f"Tokens of the prompt.  [default: {_N_TOKENS}]",
        show_default=False,
    ),
]
Fetch = Annotated[
    bool, typer.Option("--fetch", help="Fetch NVIDIA's disassembler where there is none (210 MB).")
]
Count = Annotated[
    bool,
    typer.Option("--count", help="Count sectors and bank conflicts in the emulator (a minute)."),
]
Chart = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Draw where the time goes, as FILE.png and FILE.svg.",
        show_default=False,
    ),
]


@guarded
def sm52(
    model: ModelOption = None,
    measured: Measured = None,
    card: Card = None,
    context: Context = None,
    prompt: PromptTokens = None,
    fetch: Fetch = False,
    count: Count = False,
    chart: Chart = None,
    as_json: opt.AsJson = False,
    debug: opt.Debug = False,
) -> None:
    """Project what a model will do on a Tesla M40, or another card, without having one.

    Its kernels are compiled for the card as the model launches them; their code, the card's data
    sheet and a stated model (docs/sm52.md) give each launch a range of times. No matrices are read.
    Without a disassembler only the memory's share of the time is known: --fetch gets one.
    --measured lays a report of `m40llm bench report` beside what is projected for its card.

    \b
    Examples:
      m40llm sm52 --model smollm2
      m40llm sm52 --model model.gguf --card m40-12 --context 8192 --json
      m40llm sm52 --model model.gguf --fetch --chart where-it-goes
      m40llm sm52 --measured m40llm-report.json
    """
    counts = count or None
    options = {"card": card, "context": context, "prompt": prompt, "count": counts, "chart": chart}
    if (model is None) == (measured is None):
        raise typer.BadParameter("expected --model MODEL, or --measured FILE")
    if measured is not None and (given := [n for n, value in options.items() if value is not None]):
        raise typer.BadParameter(f"--{given[0]}: not beside --measured, whose file says it")
    if model is not None:
        how: dict[str, Any] = {"count": count}
        for name, n in (("n_context", context), ("n_prompt", prompt)):
            how[name] = _N_TOKENS if n is None else n
        document = _projection(model, card or _CARDS[0], how, fetch, chart)
    else:
        assert measured is not None
        document = _comparison(measured, fetch)
    if as_json:
        print_json(document)
    else:
        print(projection_text(document) if model else comparison_text(document))


def _projection(
    model: str, card: str, how: dict[str, Any], fetch: bool, chart: str | None
) -> dict[str, Any]:
    """Of a model; how: arguments of sm52.report.report."""
    from m40llm.gguf import open_gguf
    from m40llm.hub import resolve
    from m40llm.pictures import check_place, save

    if chart is not None:
        check_place(chart)
    check_compiler()
    from m40llm.sm52.cards import card_of
    from m40llm.sm52.chart import chart as drawing
    from m40llm.sm52.report import report

    with progress_bar() as progress:
        path = resolve(model, progress=progress)
        tool = _disassembler(progress, fetch=fetch)
        with open_gguf(path) as file:
            found = report(file, card_of(card), tool=tool, progress=progress, **how)
    if chart is not None:
        for drawn in save(drawing(found), chart):
            status(f"chart: {drawn}")
    return {"model": model, **found}


def _comparison(measured: str, fetch: bool) -> dict[str, Any]:
    """Of a report: where its card has no data sheet here, measurements alone, which is said."""
    from pathlib import Path

    check_compiler()
    from m40llm.bench.beside import beside, card_of_report
    from m40llm.bench.report_file import read_report
    from m40llm.device.gpu.code_digest import code_digest

    report = read_report(Path(measured))
    card = card_of_report(report)
    if card is None:
        name, known = report["card"]["name"], ", ".join(_CARDS)
        told = f"note: no data sheet of {name!r} here ({known})"
        status(f"{told}: there are measurements, but no projections")
    elif report["software"]["code"] != code_digest():
        status("note: other kernels were measured than these: what they launch else stands alone")
    with progress_bar() as progress:
        tool = None if card is None else _disassembler(progress, fetch=fetch)
        return beside(report, card, tool, progress)


def _disassembler(progress: Any, *, fetch: bool) -> Any:
    """The path of nvdisasm; None where there is none, which is said."""
    from m40llm.sm52.disassembler import (
        VARIABLE,
        fetch_disassembler,
        find_disassembler,
        what_is_fetched,
    )

    if found := find_disassembler():
        return found
    if fetch:
        status(f"fetching {what_is_fetched()}")
        return fetch_disassembler(progress)
    status(
        f"note: no nvdisasm in {VARIABLE}, PATH or CUDA_HOME: times by memory alone, no loops; "
        f"--fetch gets {what_is_fetched()}"
    )
    return None
