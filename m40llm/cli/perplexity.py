"""`m40llm perplexity`: how well the model predicts a text.

    nll[t] = -log p(ids[t] | ids[begin .. t-1])     mean over t, perplexity = exp(mean)

The text is read in windows of `chunk` tokens, each `stride` after the one before; a token is
scored once, in the first window that holds it after another token. So every token but the very
first is scored, and after the first window each sees at least `chunk - stride` tokens before it.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer

from m40llm.cli import memory_options as mem
from m40llm.cli import options as opt
from m40llm.cli.guard import guarded
from m40llm.cli.output import loaded, print_json, progress_bar, status
from m40llm.cli.prompt import read_text
from m40llm.errors import RequestError
from m40llm.progress import Progress

if TYPE_CHECKING:
    from m40llm.cli.divergence import Divergence
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
Against = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="Another file of the same model, e.g. in F16: also measure how far the probabilities "
        "of MODEL are from its own (KL divergence).",
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
    against: Against = None,
    device: opt.Device = "auto",
    max_seq_len: opt.MaxSeqLen = None,
    kv_type: opt.KVType = None,
    cublas: opt.Cublas = None,
    require_sm52: opt.RequireSm52 = False,
    gpu_layers: mem.GpuLayers = None,
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
      m40llm perplexity model-q4_0.gguf -f book.txt --against model-f16.gguf
    """
    text = read_text(prompt, file)
    how: dict[str, Any] = {"gpu_layers": mem.gpu_layers(gpu_layers)}
    with loaded(model, device, max_seq_len, kv_type, cublas, require_sm52, **how) as llm:
        ids = llm.tokenizer.encode(text)[:max_tokens]
        n_chunk = chunk or min(llm.max_seq_len, CHUNK)
        n_stride = stride or n_chunk // 2
        _check(len(ids), n_chunk, n_stride, llm.max_seq_len)
        result: dict[str, Any] = {"model": model, "device": llm.device_name}
        with _base(against, device, max_seq_len, "f16", cublas, require_sm52, **how) as base:
            if base:
                _check_same_vocabulary(llm, base, ids, text)
                _check(len(ids), n_chunk, n_stride, base.max_seq_len)
            with progress_bar() as progress:
                nll, divergence = _measured(llm, base, ids, (n_chunk, n_stride), progress)
    mean = math.fsum(nll) / len(nll)
    result |= {"n_tokens": len(nll), "mean_nll": mean, "perplexity": math.exp(mean)}
    result |= {"chunk": n_chunk, "stride": n_stride}
    if against:
        result |= {"against": against, **divergence.summary()}
    if per_token:
        result |= {"ids": ids[1:], "nll": nll}
    if as_json:
        print_json(result)
        return
    print(f"perplexity {result['perplexity']:.4f}   mean nll {mean:.5f} nats a token")
    if against:
        print(
            f"KL divergence {result['mean_kl']:.6f} nats a token (99 % below "
            f"{result['p99_kl']:.5f})   same likeliest token {100 * result['same_top']:.2f} %"
        )
    status(f"{len(nll)} tokens scored, in windows of {n_chunk}, {n_stride} apart")


def _check(n_ids: int, chunk: int, stride: int, max_seq_len: int) -> None:
    if n_ids < 2:
        raise RequestError(f"the text has {n_ids} tokens, at least 2 are needed to score one")
    if chunk > max_seq_len:
        raise RequestError(f"--chunk: expected at most {max_seq_len} (max_seq_len), got {chunk}")
    if stride >= chunk:
        raise RequestError(f"--stride: expected less than the chunk ({chunk}), got {stride}")


def _check_same_vocabulary(llm: "LLM", base: "LLM", ids: list[int], text: str) -> None:
    """RequestError where probabilities of the two are not of the same tokens."""
    sizes = llm.hparams.vocab_size, base.hparams.vocab_size
    if sizes[0] != sizes[1] or base.tokenizer.encode(text)[: len(ids)] != ids:
        raise RequestError(
            f"--against: expected a model of the same vocabulary; "
            f"{sizes[0]} and {sizes[1]} tokens, or the text is cut in another way"
        )


def windows(n_ids: int, chunk: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(begin, first, end) of each window: it reads ids[begin:end] and scores ids[first:end]."""
    begin, first = 0, 1
    while first < n_ids:
        end = min(begin + chunk, n_ids)
        yield begin, first, end
        begin, first = begin + stride, end


def _base(against: str | None, *options: Any, **more: Any) -> "AbstractContextManager[LLM | None]":
    return loaded(against, *options, **more) if against else nullcontext()


def _measured(
    llm: "LLM", base: "LLM | None", ids: list[int], sizes: tuple[int, int], progress: Progress
) -> "tuple[list[float], Divergence]":
    """The negative log-likelihood of ids[1:], in nats, and how far the base's predictions are."""
    import numpy as np  # not for --help

    from m40llm.cli.divergence import Divergence
    from m40llm.engine.sampling import log_softmax

    nll: list[float] = []
    divergence = Divergence()
    for begin, first, end in windows(len(ids), *sizes):
        read, scored = ids[begin : end - 1], first - 1 - begin  # row r predicts ids[begin + r + 1]
        logits, targets = llm.logits(read)[scored:], ids[first:end]
        base_logits = base.logits(read)[scored:] if base else None
        for at in range(0, len(targets), SOFTMAX_ROWS):
            rows = slice(at, at + SOFTMAX_ROWS)
            logprobs, wanted = log_softmax(logits[rows]), targets[rows]
            nll += (-logprobs[np.arange(len(wanted)), wanted]).tolist()
            if base_logits is not None:
                divergence.add(log_softmax(base_logits[rows]), logprobs)
        progress("read", end / len(ids))
    return nll, divergence
