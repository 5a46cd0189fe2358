"""`m40llm lens`: what a model would say behind each of its layers."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from m40llm.cli import memory_options as mem
from m40llm.cli import options as opt
from m40llm.cli.guard import guarded
from m40llm.cli.output import loaded, print_json, progress_bar, shown_token, status, table
from m40llm.cli.prompt import prompt_ids, read_text
from m40llm.errors import RequestError

if TYPE_CHECKING:
    from m40llm.research.lens import Lens

Out = Annotated[
    str | None,
    typer.Option(
        metavar="FILE.html",
        help="Write a report, too: each token's cost, the lens at every position, what has said "
        "the answer, attention. One file that needs no network.",
        show_default=False,
    ),
]
Top = Annotated[int, typer.Option(min=1, metavar="N", help="How many tokens to show a layer.")]


@guarded
def lens(
    model: opt.Model,
    prompt: opt.Prompt = None,
    file: opt.PromptFile = None,
    top: Top = 5,
    out: Out = None,
    device: opt.Device = "auto",
    max_seq_len: opt.MaxSeqLen = None,
    gpu_layers: mem.GpuLayers = None,
    as_json: opt.AsJson = False,
    debug: opt.Debug = False,
) -> None:
    """Show what a model would say next, were each layer its last: the logit lens.

    From Python the same, and much more, at every position: docs/research.md.

    \b
    Examples:
      m40llm lens smollm2 -p "The Eiffel Tower is in the city of"
      m40llm lens model.gguf -f text.txt --out report.html
    """
    text = read_text(prompt, file)
    where = None if out is None else _checked_out(out)
    from m40llm.research.report import report

    on = (device, max_seq_len, None, None, False)
    with (
        loaded(model, *on, gpu_layers=mem.gpu_layers(gpu_layers)) as llm,
        progress_bar() as progress,
    ):
        ids = prompt_ids(llm.tokenizer, text)
        found = llm.lens(ids, at=-1, top=top)
        if where is not None:
            page = report(llm, ids, top=top, progress=progress)
            where.write_text(page, encoding="utf-8")
    if as_json:
        print_json({"model": model, "device": llm.device_name, **_document(found, where)})
        return
    _show(found)
    if where is not None:
        status(f"report: {where}")


def _checked_out(out: str) -> Path:
    """RequestError, before anything is computed, where no file can be written."""
    path = Path(out)
    if path.is_dir() or not path.parent.is_dir():
        raise RequestError(f"--out: cannot write {out}: there is no such folder, or it is one")
    return path


def _document(found: "Lens", where: Path | None) -> dict[str, Any]:
    layers = [
        {
            "site": site,
            "entropy": float(found.entropy[n, 0]),
            "top": [
                {"id": int(token_id), "piece": piece, "logprob": float(logprob)}
                for token_id, piece, logprob in zip(
                    found.top_ids[n, 0], found.pieces[n][0], found.top_logprobs[n, 0], strict=True
                )
            ],
        }
        for n, site in enumerate(found.sites)
    ]
    report = None if where is None else str(where)
    return {"prompt_ids": found.ids, "layers": layers, "report": report}


def _show(found: "Lens") -> None:
    from math import exp

    rows: list[tuple[object, ...]] = [("layer", "entropy", "likeliest next tokens")]
    for n, site in enumerate(found.sites):
        pairs = zip(found.pieces[n][0], found.top_logprobs[n, 0], strict=True)
        shares = [f"{shown_token(piece)} {100 * exp(logprob):.0f} %" for piece, logprob in pairs]
        name = site.removeprefix("blk.").removesuffix(".resid_post")
        rows.append((name, f"{found.entropy[n, 0]:7.3f}", "  ".join(shares)))
    print(table(rows, indent=0))
