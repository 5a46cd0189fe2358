"""`m40llm embed`: texts as vectors, and how alike they are."""

from typing import Annotated, Literal

import typer

from m40llm.cli import memory_options as mem
from m40llm.cli import options as opt
from m40llm.cli.guard import guarded
from m40llm.cli.output import loaded, print_json, progress_bar, shown_token, table
from m40llm.cli.prompt import read_text

Texts = Annotated[
    list[str] | None,
    typer.Option("-p", "--prompt", metavar="TEXT", help="A text; may be given several times."),
]
Lines = Annotated[
    str | None,
    typer.Option("-f", "--file", metavar="FILE", help="Read the texts from a file, one a line."),
]
Pooling = Annotated[
    Literal["mean", "last", "cls"],
    typer.Option(
        help="Of all tokens the mean, or the state of the last, or of the first (cls), which in "
        "these models has seen no other."
    ),
]
Normalise = Annotated[
    bool, typer.Option("--normalise/--no-normalise", help="Make each vector's length 1.")
]
N_SHOWN = 4  # numbers of a vector
MOST_COSINES = 8  # texts, beyond which no line of a terminal would hold them


@guarded
def embed(
    model: opt.Model,
    prompt: Texts = None,
    file: Lines = None,
    pooling: Pooling = "mean",
    normalise: Normalise = True,
    device: opt.Device = "auto",
    max_seq_len: opt.MaxSeqLen = None,
    kv_type: opt.KVType = None,
    cublas: opt.Cublas = None,
    require_sm52: opt.RequireSm52 = False,
    gpu_layers: mem.GpuLayers = None,
    as_json: opt.AsJson = False,
    debug: opt.Debug = False,
) -> None:
    """Turn texts into vectors: the model's last hidden states, pooled over the tokens.

    Shown are the first numbers of each, and of up to eight texts the cosine of every two; --json
    has all numbers.

    \b
    Examples:
      m40llm embed smollm2 -p "a cat" -p "a kitten" -p "the stock market"
      m40llm embed model.gguf -f sentences.txt --pooling last --json
    """
    texts = _texts(prompt, file)
    on, n_layers = (device, max_seq_len, kv_type), mem.gpu_layers(gpu_layers)
    with loaded(model, *on, cublas, require_sm52, gpu_layers=n_layers) as llm:
        with progress_bar() as progress:
            vectors = llm.embed(texts, pooling, normalise=normalise, progress=progress)
        if as_json:
            head = {"model": model, "device": llm.device_name, "pooling": pooling}
            print_json({**head, "n_embd": vectors.shape[1], "embeddings": vectors.tolist()})
            return
    lengths = (vectors**2).sum(axis=1, keepdims=True) ** 0.5
    unit = vectors / lengths.clip(min=1e-30)
    n_cosines = len(texts) if len(texts) <= MOST_COSINES else 0
    cosines = unit @ unit[:n_cosines].T
    rows = [
        (
            shown_token(text if len(text) <= 32 else text[:31] + "…"),
            " ".join(f"{number:8.4f}" for number in vector[:N_SHOWN]) + " ...",
            *(f"{cosine:7.4f}" for cosine in row),
        )
        for text, vector, row in zip(texts, vectors, cosines, strict=True)
    ]
    told = "; on the right, cosines" if n_cosines > 1 else ""
    print(f"{len(texts)} texts, {vectors.shape[1]} numbers each{told}")
    print(table(rows))


def _texts(prompt: list[str] | None, file: str | None) -> list[str]:
    """Those of -p, or the lines of a file that are not empty."""
    if (prompt is None) == (file is None):
        raise typer.BadParameter("give either texts (-p) or a file of them (-f)")
    if prompt is not None:
        return [read_text(text, None) for text in prompt]
    lines = (line.removesuffix("\r") for line in read_text(None, file).split("\n"))
    texts = [line for line in lines if line.strip()]
    if not texts:
        raise typer.BadParameter(f"{file} has no text in it")
    return texts
