"""`m40llm perplexity`: how well the model predicts a text.

    nll[t] = -log p(ids[t] | ids[begin .. t-1])     mean over t, perplexity = exp(mean)

The text is read in windows of `chunk` tokens, each `stride` after the one before; a token is
scored once, in the first window that holds it after another token. So every token but the very
first is scored, and after the first window each sees at least `chunk - stride` tokens before it.
"""

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from m40llm.cli import options as opt
from m40llm.cli.guard import guarded
from m40llm.cli.output import loaded, print_json, progress_bar, status
from m40llm.cli.prompt import read_text
from m40llm.errors import RequestError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from m40llm.llm import LLM

CHUNK = 2048  # tokens: the logits of one window are chunk * vocab_size * 4 bytes
SOFTMAX_ROWS = 64  # rows whose float64 copy is made at a time

MaxTokens = Annotated[
    int | None,
    typer.Option(min=2, metavar="N", help="Read only the first N tokens.", show_default=False),
]
Chunk = Annotated[
    int | None,
    typer.Option(
        min=2,
        metavar="N",
        help=f"Tokens a window.  [default: the context length, at most {CHUNK}]",
        show_default=False,
    ),
]
Stride = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Tokens from one window to the next.  [default: half the chunk]",
        show_default=False,
    ),
]
PerToken = Annotated[
    bool, typer.Option("--per-token", help="With --json: add each token's id and nll.")
]


@guarded
def perplexity(
    model: opt.Model,
    file: opt.PromptFile = None,
    prompt: opt.Prompt = None,
    max_tokens: MaxTokens = None,
    chunk: Chunk = None,
    stride: Stride = None,
    per_token: PerToken = False,
    device: opt.Device = "auto",
    max_seq_len: opt.MaxSeqLen = None,
    cublas: opt.Cublas = None,
    require_sm52: opt.RequireSm52 = False,
    as_json: opt.AsJson = False,
    debug: opt.Debug = False,
) -> None:
    """Measure how well a model predicts a text: mean negative log-likelihood and perplexity.

    The begin-of-sequence token is put in front where the file says so; the first token of all,
    having nothing before it, is not scored.

    \b
    Examples:
      m40llm perplexity smollm2 -f book.txt --max-tokens 4096
      m40llm perplexity model.gguf -f book.txt --chunk 512 --json --per-token
    """
    text = read_text(prompt, file)
    with loaded(model, device, max_seq_len, cublas, require_sm52) as llm:
        ids = llm.tokenizer.encode(text)[:max_tokens]
        n_chunk = chunk or min(llm.max_seq_len, CHUNK)
        n_stride = stride or n_chunk // 2
        _check(len(ids), n_chunk, n_stride, llm.max_seq_len)
        with progress_bar() as progress:
            nll = token_nll(llm, ids, n_chunk, n_stride, lambda done: progress("read", done))
        result: dict[str, Any] = {"model": model, "device": llm.device_name}
    mean = math.fsum(nll) / len(nll)
    result |= {"n_tokens": len(nll), "mean_nll": mean, "perplexity": math.exp(mean)}
    result |= {"chunk": n_chunk, "stride": n_stride}
    if per_token:
        result |= {"ids": ids[1:], "nll": nll}
    if as_json:
        print_json(result)
        return
    print(f"perplexity {result['perplexity']:.4f}   mean nll {mean:.5f} nats a token")
    status(f"{len(nll)} tokens scored, in windows of {n_chunk}, {n_stride} apart")


def _check(n_ids: int, chunk: int, stride: int, max_seq_len: int) -> None:
    if n_ids < 2:
        raise RequestError(f"the text has {n_ids} tokens, at least 2 are needed to score one")
    if chunk > max_seq_len:
        raise RequestError(f"--chunk: expected at most {max_seq_len} (max_seq_len), got {chunk}")
    if stride >= chunk:
        raise RequestError(f"--stride: expected less than the chunk ({chunk}), got {stride}")


def windows(n_ids: int, chunk: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(begin, first, end) of each window: it reads ids[begin:end] and scores ids[first:end]."""
    begin, first = 0, 1
    while first < n_ids:
        end = min(begin + chunk, n_ids)
        yield begin, first, end
        begin, first = begin + stride, end


def token_nll(
    llm: "LLM", ids: list[int], chunk: int, stride: int, progress: Callable[[float], None]
) -> list[float]:
    """The negative log-likelihood of ids[1:], in nats, one float64 a token."""
    nll: list[float] = []
    for begin, first, end in windows(len(ids), chunk, stride):
        logits = llm.logits(ids[begin : end - 1])  # row r predicts ids[begin + r + 1]
        nll += _nll_of(logits[first - 1 - begin :], ids[first:end])
        progress(end / len(ids))
    return nll


def _nll_of(logits: "NDArray[np.float32]", targets: list[int]) -> list[float]:
    """log(sum(exp(row))) - row[target], a block of rows at a time, in float64."""
    import numpy as np

    nll: list[float] = []
    for start in range(0, len(targets), SOFTMAX_ROWS):
        block = logits[start : start + SOFTMAX_ROWS].astype(np.float64)
        wanted = targets[start : start + SOFTMAX_ROWS]
        highest = block.max(axis=1)
        lse = highest + np.log(np.exp(block - highest[:, None]).sum(axis=1))
        nll += (lse - block[np.arange(len(wanted)), wanted]).tolist()
    return nll
