"""`m40llm tokenize`: a text as token ids, or ids as text."""

from typing import Annotated

import typer

from m40llm.cli import options as opt
from m40llm.cli.guard import guarded
from m40llm.cli.output import piece_of, print_json, progress_bar, shown_token, status, table
from m40llm.cli.prompt import read_text

Ids = Annotated[
    list[str] | None,
    typer.Argument(metavar="[IDS]...", help="With --decode: token ids, by spaces or commas."),
]
Bos = Annotated[
    bool | None,
    typer.Option(
        "--bos/--no-bos",
        help="Put the begin-of-sequence token in front.  [default: as the file says]",
        show_default=False,
    ),
]
Special = Annotated[
    bool, typer.Option("--special", help="Read special tokens written in the text as such.")
]
Decode = Annotated[bool, typer.Option("--decode", help="Turn the ids given into text.")]


@guarded
def tokenize(
    model: opt.Model,
    ids: Ids = None,
    prompt: opt.Prompt = None,
    file: opt.PromptFile = None,
    bos: Bos = None,
    special: Special = False,
    decode: Decode = False,
    as_json: opt.AsJson = False,
    debug: opt.Debug = False,
) -> None:
    """Show a text as the model's tokens, or tokens as text. Loads no weights.

    \b
    Examples:
      m40llm tokenize smollm2 -p "Hello, world"
      m40llm tokenize smollm2 -p "<|im_start|>user" --special --json
      m40llm tokenize smollm2 --decode 19556 28 905
    """
    if decode and (prompt is not None or file is not None):
        raise typer.BadParameter("--decode takes ids, not -p or -f")
    if ids and not decode:
        raise typer.BadParameter(f"unexpected {ids[0]!r}: ids need --decode, a text needs -p")
    wanted = _parse_ids(ids or []) if decode else []
    text = "" if decode else read_text(prompt, file)

    from m40llm.hub import resolve
    from m40llm.text import tokenizer_from_gguf

    with progress_bar() as progress:
        path = resolve(model, progress=progress)
    tokenizer = tokenizer_from_gguf(path)
    if decode:
        text = tokenizer.decode(wanted)
    else:
        wanted = tokenizer.encode(text, add_bos=bos, parse_special=special)
    pieces = [piece_of(tokenizer, token_id) for token_id in wanted]
    if as_json:
        print_json({"model": model, "ids": wanted, "pieces": pieces, "text": text})
    elif decode:
        print(text)
    else:
        if wanted:
            print(table(zip(wanted, map(shown_token, pieces), strict=True), indent=0))
        status(f"{len(wanted)} tokens")


def _parse_ids(words: list[str]) -> list[int]:
    numbers = " ".join(words).replace(",", " ").split()
    if not numbers:
        raise typer.BadParameter("--decode needs at least one token id")
    for number in numbers:
        if not (number.isascii() and number.isdigit()):
            raise typer.BadParameter(f"expected a token id, got {number!r}")
    return [int(number) for number in numbers]
