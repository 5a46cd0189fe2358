"""`m40llm sm52`: what a model will do on a card that is not here, projected from its code."""

from typing import Annotated, Any

import typer

from m40llm.cli import options as opt
from m40llm.cli.guard import guarded
from m40llm.cli.output import human_bytes, print_json, progress_bar, status, table
from m40llm.errors import DeviceError

_CARDS = ("m40-24", "m40-12", "p40", "titan-x", "h100")  # those of sm52/cards.py; a test compares


def _check_card(value: str) -> str:
    if value not in _CARDS:
        raise typer.BadParameter(f"expected {', '.join(_CARDS)}, got {value!r}")
    return value


ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="MODEL",
        help=opt.MODEL_HELP,
        show_default=False,
    ),
]
Card = Annotated[
    str, typer.Option(metavar="|".join(_CARDS), help="Which card.", callback=_check_card)
]
Context = Annotated[
    int, typer.Option(min=0, metavar="N", help="Tokens in the cache where one is decoded.")
]
PromptTokens = Annotated[int, typer.Option(min=1, metavar="N", help="Tokens of the prompt.")]
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
    model: ModelOption,
    card: Card = "m40-24",
    context: Context = 512,
    prompt: PromptTokens = 512,
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

    \b
    Examples:
      m40llm sm52 --model smollm2
      m40llm sm52 --model model.gguf --card m40-12 --context 8192 --json
      m40llm sm52 --model model.gguf --fetch --chart where-it-goes
    """
    from m40llm.device.numba_cuda import numba_cuda_problem
    from m40llm.gguf import open_gguf
    from m40llm.hub import resolve
    from m40llm.pictures import save

    if problem := numba_cuda_problem():
        raise DeviceError(f"kernels cannot be compiled: {problem}")
    from m40llm.sm52.cards import card_of
    from m40llm.sm52.chart import chart as drawing
    from m40llm.sm52.report import report

    with progress_bar() as progress:
        path = resolve(model, progress=progress)
        tool = _disassembler(progress, fetch=fetch)
        how = {"n_context": context, "n_prompt": prompt, "tool": tool, "count": count}
        with open_gguf(path) as file:
            found = report(file, card_of(card), progress=progress, **how)
    document = {"model": model, **found}
    if chart is not None:
        for drawn in save(drawing(found), chart):
            status(f"chart: {drawn}")
    if as_json:
        print_json(document)
    else:
        print(_report(document))


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


def _report(document: dict[str, Any]) -> str:
    parts = [f"{document['card']}, {document['what']}"]
    parts.append(f"what fits: {document['plan']}{_lacks(document)}")
    for name in ("decode", "prefill"):
        if found := document[name]:
            parts.append(_rate(name, found))
            if name == "decode" and document["fits"] and document["has_persistent"]:
                parts.append(
                    f"  of these {_range(found['gap_ms'])} ms are gaps between launches, which the "
                    "persistent form does not have; its barriers are not projected"
                )
            parts.append(_kernels([k for k in document["kernels"] if k["step"] == name]))
    return "\n".join(parts)


def _lacks(document: dict[str, Any]) -> str:
    """What is not projected because it is not on the card."""
    if document["fits"]:
        return ""
    if n := document["n_card_layers"]:
        return (
            f": {n} of {document['n_layers']} layers on the card, whose times these are; what the "
            "CPU takes for the others is not projected"
        )
    return ": no layers, beside a useful context, so no times"


def _rate(name: str, step: dict[str, Any]) -> str:
    time = _range(step["ms"])
    rate = f"{_range(step['tokens_per_s'])} tokens/s, " if step["tokens_per_s"] else ""
    told = {
        "decode": f"decode behind {step['n_context']} tokens: {rate}{time} ms each",
        "prefill": f"prefill of {step['n_tokens']} tokens: {rate}"
        + (f"the first token after {time} ms" if rate else f"{time} ms"),
    }[name]
    launches = f"{step['n_launches']} launches, {human_bytes(step['n_bytes'])}"
    return f"{told}; {launches}, mostly bound by {step['bound']}"


def _kernels(kernels: list[dict[str, Any]]) -> str:
    head = ("us each", "times", "kernel", "operand", "bound", "registers", "spilled", "shared")
    return table(
        [(*head, "warps an SM", "loop", "FFMA", "sectors", "wavefronts"), *map(_cells, kernels)]
    )


def _cells(kernel: dict[str, Any]) -> tuple[str, ...]:
    k = kernel
    return (
        *(_range(k["us"]), str(k["count"]), k["kernel"], k["operand"], k["bound"]),
        *(str(k["registers"]), str(k["spill_bytes"]), human_bytes(k["shared_bytes"])),
        f"{k['n_warps']} ({k['occupancy_limit']})",
        "-" if k["loop_instructions"] is None else str(k["loop_instructions"]),
        "-" if k["ffma_share"] is None else f"{k['ffma_share']:.0%}",
        *("-" if k[key] is None else f"{k[key]:.1f}" for key in ("sectors", "wavefronts")),
    )


def _range(pair: list[float]) -> str:
    low, high = (f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in pair)
    return f"{low} to {high}"
