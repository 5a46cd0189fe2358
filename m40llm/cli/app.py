"""The verbs, put together."""

import inspect
from collections.abc import Callable
from typing import Annotated

import typer

from m40llm import __version__
from m40llm.cli.bench import bench_app
from m40llm.cli.chat import chat
from m40llm.cli.doctor import doctor
from m40llm.cli.embed import embed
from m40llm.cli.fuzz import fuzz
from m40llm.cli.generate import generate
from m40llm.cli.info import info
from m40llm.cli.lens import lens
from m40llm.cli.logits import logits
from m40llm.cli.perplexity import perplexity
from m40llm.cli.prompt import TextCommand
from m40llm.cli.pull import pull
from m40llm.cli.quantize import quantize
from m40llm.cli.report import report
from m40llm.cli.serve import serve
from m40llm.cli.sm52 import sm52
from m40llm.cli.tokenize import tokenize
from m40llm.cli.tune import tune

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich's help costs 0.3 s
    context_settings={"help_option_names": ["-h", "--help"]},
)

VERBS: dict[Callable[..., None], str] = {
    generate: "Continue a text.",
    chat: "Talk with a model.",
    serve: "Serve a model over HTTP, with a web page.",
    info: "Show what a model file holds and needs.",
    tokenize: "Turn text into tokens, or back.",
    perplexity: "Measure how well a model predicts a text.",
    logits: "Show the likeliest next tokens.",
    embed: "Turn texts into vectors.",
    lens: "Show what each layer would say next.",
    pull: "Fetch a model, or list them.",
    quantize: "Write a model file in another type.",
    fuzz: "Fuzz GPU kernels against their references.",
    sm52: "Project a model's speed on a Tesla M40.",
    doctor: "Show what this machine has and lacks.",
}
for verb, summary in VERBS.items():
    has_text = "prompt" in inspect.signature(verb).parameters
    app.command(short_help=summary, cls=TextCommand if has_text else None)(verb)
bench_app.command(short_help="Pick the tiles of matrix products by measurement.")(tune)
bench_app.command(short_help="Measure all that tells of this card, as one file.")(report)
app.add_typer(bench_app, name="bench", short_help="Measure this card with a model.")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"m40llm {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Run GGUF language models: on the CPU, or on GPU kernels written in Python.

    \b
    Start here:
      m40llm generate smollm2 -p "The capital of France is" -n 16
      m40llm chat smollm2
      m40llm serve smollm2
      m40llm doctor
    """
