"""Prefill of a prompt: the whole model, and its matrix products alone, in the same process.

Drawn weights in a real shape; the prompt goes in chunks, as in the engine. Verified before it is
timed: the last token's logits must be those of chunks of another size, within FP32's rounding.

    python benchmarks/bench_prefill.py [--shape 1b] [--type F16] [--tokens 512,2048] [--chunk 512]

products_share is the time of the products alone over that of the whole; an untimed run comes first.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prefill_beside_decode import lengths, model_on

from m40llm.bench.shapes import TYPES
from m40llm.errors import M40LLMError, RequestError
from m40llm.model.batch import Batch
from m40llm.model.transformer import Transformer

N_REPEATS = 7
MAX_ERROR = 1e-3  # of the logits' spread: two orders of the same sums


def prompt(n_tokens: int, vocab_size: int) -> list[int]:
    return np.random.default_rng(0).integers(0, vocab_size, n_tokens).tolist()


def prefill(model: Transformer, ids: list[int], chunk: int) -> NDArray[Any]:
    """The last token's logits, on the host."""
    logits = None
    for first in range(0, len(ids), chunk):
        logits = model.forward(Batch.of((0, first, ids[first : first + chunk])))
    return model.ops.read(logits)[-1]


def products(model: Transformer, n_tokens: int, chunk: int) -> None:
    """The same matrix products, on whatever the buffers hold."""
    ops = model.ops
    for first in range(0, n_tokens, chunk):
        ws = model.workspace.rows(min(chunk, n_tokens - first))
        for w in model.weights.layers:
            for matrix, x, out in (
                *((w.attn_q, ws.x_norm, ws.q), (w.attn_k, ws.x_norm, ws.k)),
                *((w.attn_v, ws.x_norm, ws.v), (w.attn_output, ws.attn, ws.x)),
                *((w.ffn_gate, ws.x_norm, ws.gate), (w.ffn_up, ws.x_norm, ws.up)),
                (w.ffn_down, ws.gate, ws.x),
            ):
                ops.matmul(matrix, x, out=out)
        ops.matmul(model.weights.output, model.workspace.x_last[:1], out=model.workspace.logits[:1])
    ops.read(model.workspace.logits[:1])


def median_ms(work: Callable[[], Any]) -> float:
    """From the call to the result on the host."""
    work()
    samples = []
    for _ in range(N_REPEATS):
        start = time.perf_counter()
        work()
        samples.append(1e3 * (time.perf_counter() - start))
    return statistics.median(samples)


def measure(model: Transformer, n_tokens: int, chunk: int) -> dict[str, float]:
    """One row. M40LLMError if the logits depend on the chunks."""
    ids = prompt(n_tokens, model.hp.vocab_size)
    logits, others = (prefill(model, ids, size) for size in (chunk, max(chunk // 2 - 1, 1)))
    error = float(np.abs(logits - others).max() / np.std(others))
    if not error <= MAX_ERROR:
        raise M40LLMError(f"{n_tokens} tokens: logits differ by {error:.2g} of their spread")
    whole = median_ms(lambda: prefill(model, ids, chunk))
    alone = median_ms(lambda: products(model, n_tokens, chunk))
    return {
        "n_tokens": n_tokens, "chunk": chunk, "verified_to": error, "ms": whole,
        "tokens_per_s": 1e3 * n_tokens / whole, "products_ms": alone,
        "products_share": alone / whole,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="1b", help="135m, 1b, 8b or qwen3-8b")
    parser.add_argument("--type", default="F16", choices=TYPES, help="of the weights")
    parser.add_argument("--tokens", default="512,2048", type=lengths, help="of the prompts")
    parser.add_argument("--chunk", default=512, type=int, help="tokens at a time")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or emulator")
    args = parser.parse_args()
    try:
        if args.chunk < 1:
            raise RequestError(f"--chunk: expected at least 1, got {args.chunk}")
        sizes = {"n_seqs": 1, "max_seq_len": max(args.tokens), "max_tokens": args.chunk}
        model = model_on(args.device, args.shape, args.type, **sizes)
        for n_tokens in args.tokens:
            row = {"bench": "prefill", "model": args.shape, "type": args.type}
            print(json.dumps({**row, **measure(model, n_tokens, args.chunk)}), flush=True)
    except M40LLMError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
