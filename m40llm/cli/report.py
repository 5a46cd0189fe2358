"""`m40llm bench report`: what this card does, as one file that is worth sending."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from m40llm.cli import options as opt
from m40llm.cli.bench_arguments import check_compiler, gpu_ops
from m40llm.cli.guard import guarded
from m40llm.cli.output import print_json, progress_bar, status
from m40llm.errors import DeviceError, RequestError

if TYPE_CHECKING:
    from m40llm.bench.report import Names, Report


@guarded
def report(
    out: Annotated[
        str, typer.Option(metavar="FILE", help="Where it goes; one that is there is not replaced.")
    ] = "m40llm-report.json",
    minutes: Annotated[
        float, typer.Option(min=0.5, max=120.0, metavar="N", help="What may begin within them.")
    ] = 10.0,
    models: Annotated[
        str | None,
        typer.Option(
            metavar="SHAPE:TYPE,...",
            help="Which models, in place of those that tell most: 1b:Q4_K,8b:F16.",
            show_default=False,
        ),
    ] = None,
    device: opt.Device = "cuda",
    as_json: opt.AsJson = False,
    debug: opt.Debug = False,
) -> None:
    """Measure this card, and write what was found to one JSON file: docs/measure_your_card.md.

    Its memory and its FP32 peak; then models of real shapes with drawn weights, as far as memory
    and minutes go: decode, prefill, and every kind of launch that they are made of. Each is
    verified before it is timed. The file says nothing of you or your machine but the card, the
    driver and versions. Ctrl-C writes what there is, marked as broken off.

    \b
    Examples:
      m40llm bench report
      m40llm bench report --minutes 3 --out m40.json
      m40llm bench report --device emulator --out trial.json
    """
    check_compiler()
    from m40llm.bench.report import Report
    from m40llm.bench.report_file import check_place

    where, wanted = Path(out), _models(models)
    check_place(where)
    with progress_bar() as progress:
        ops = gpu_ops(device, progress)
        status(f"device: {ops.card.about}")
        found = Report(ops, 60 * minutes, progress=progress, say=status)
        _run(found, wanted, where)
    if as_json:
        print_json(found.document)
    else:
        print(_shown(found.document, where))
    if failed := found.document["failed"]:
        raise DeviceError(f"{len(failed)} of what was tried failed, which {where} tells: send it")


def _run(found: "Report", models: "tuple[Names, ...]", where: Path) -> None:
    """The report, and its file, if only of what was measured before it was broken off."""
    from m40llm.bench.report_file import write_report

    try:
        found.run(models)
    finally:
        if found.document["models"] or found.document["is_complete"]:
            write_report(found.document, where)
        if found.document["models"] and not found.document["is_complete"]:
            status(f"broken off: {where} has what was measured, and says so")


def _models(text: str | None) -> "tuple[Names, ...]":
    from m40llm.bench.shapes import TYPES, shape_of

    found = []
    for name in [] if text is None else text.split(","):
        shape, colon, kind = name.partition(":")
        if not colon or kind not in TYPES:
            wanted = f"SHAPE:TYPE, a type of {', '.join(TYPES)}"
            raise RequestError(f"models: expected {wanted}, got {name!r}")
        shape_of(shape)
        found.append((shape, kind))
    return tuple(found)


def _shown(document: dict[str, Any], where: Path) -> str:
    models = document["models"]
    n_kinds = sum(len(model["launches"]) for model in models)
    left_out = f", {len(document['skipped'])} left out" if document["skipped"] else ""
    return (
        f"{where}: {len(models)} of the models{left_out}, {n_kinds} kinds of launches, "
        f"in {document['seconds']:.0f} s\n"
        f"beside what is projected: m40llm sm52 --measured {where}\n"
        "to send it: docs/measure_your_card.md"
    )
