"""How long a prefill holds up the decode of another sequence: the longest gap between two tokens.

One sequence decodes in the persistent form; in the midst of it the host says YIELD and enqueues a
prefill of another one, which runs between two launches. The gap should be no longer than the
prefill alone, two tokens and a launch: docs/persistent.md. The tokens must be those of an
undisturbed run.

    python benchmarks/prefill_beside_decode.py [--shape 1b] [--type F16] [--chunks 32,128,512]
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable

from m40llm.bench.shapes import TYPES, shape_of
from m40llm.bench.synthetic import synthetic_model
from m40llm.device import open_device
from m40llm.device.decoder import Decoder, SlotRequest
from m40llm.device.gpu.ops import GpuOps
from m40llm.errors import DeviceError, M40LLMError, RequestError
from m40llm.model.batch import Batch
from m40llm.model.transformer import Transformer

N_TOKENS, AT_TOKEN, N_REPEATS = 200, 100, 7


def decode(decoder: Decoder, disturb: Callable[[], None]) -> tuple[list[int], list[float]]:
    """(tokens, ms between their arrivals); `disturb` is called once AT_TOKEN have come."""
    decoder.begin(0, SlotRequest(5, 0, N_TOKENS))
    tokens: list[int] = []
    arrivals: list[float] = []
    is_disturbed = False
    while len(tokens) < N_TOKENS:
        decoder.advance("persistent")
        for answer in decoder.answers():
            tokens.append(answer.token_id)
            arrivals.append(time.perf_counter())
        if len(tokens) >= AT_TOKEN and not is_disturbed:
            is_disturbed = True
            disturb()
    gaps = [1e3 * (b - a) for a, b in itertools.pairwise(arrivals)]
    return tokens, gaps


def prefill_ms(model: Transformer, batch: Batch) -> float:
    """Of a prefill alone, from the call to its logits on the host: the median."""
    samples = []
    for _ in range(N_REPEATS):
        start = time.perf_counter()
        model.ops.read(model.forward(batch))
        samples.append(1e3 * (time.perf_counter() - start))
    return statistics.median(samples)


def measure(model: Transformer, decoder: Decoder, n_tokens: int) -> dict[str, float]:
    """One row: all in ms, medians over the repeats but for `longest_gap`."""
    batch = Batch.of((1, 0, [7 + i % 1000 for i in range(n_tokens)]))
    alone = prefill_ms(model, batch)
    undisturbed, gaps = decode(decoder, lambda: None)
    longest = []

    def disturb() -> None:
        decoder.make_way()
        model.forward(batch)

    for _ in range(N_REPEATS):
        tokens, disturbed_gaps = decode(decoder, disturb)
        if tokens != undisturbed:
            raise DeviceError(f"prefill of {n_tokens}: the tokens beside it are others")
        longest.append(max(disturbed_gaps))
    return {
        "prefill_tokens": n_tokens,
        "token_ms": statistics.median(gaps),
        "prefill_alone_ms": alone,
        "gap_ms": statistics.median(longest),
        "longest_gap_ms": max(longest),
    }


def lengths(text: str) -> list[int]:
    """Of --chunks."""
    found = [int(n) for n in text.split(",")]
    if min(found) < 1:
        raise ValueError(text)
    return found


def model_on(device: str, shape: str, type: str, **sizes: int) -> Transformer:
    """On a card or its emulator, of these n_seqs, max_seq_len and max_tokens."""
    ops, _ = open_device(device)
    if not isinstance(ops, GpuOps):
        raise RequestError(f"device: expected cuda or emulator, got {device!r}")
    return synthetic_model(ops, shape_of(shape), type, **sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="1b", help="135m, 1b, 8b or qwen3-8b")
    parser.add_argument("--type", default="F16", choices=TYPES, help="of the weights")
    parser.add_argument("--chunks", default="32,128,512", type=lengths, help="tokens of a prefill")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or emulator")
    args = parser.parse_args()
    try:
        most = max(args.chunks)
        sizes = {"n_seqs": 2, "max_seq_len": max(most, N_TOKENS) + 1, "max_tokens": most}
        model = model_on(args.device, args.shape, args.type, **sizes)
        decoder = model.decoder
        if isinstance(decoder, str):
            raise DeviceError(decoder)
        for n_tokens in args.chunks:
            row = {"model": args.shape, "type": args.type, "device": decoder.device}
            print(json.dumps({**row, **measure(model, decoder, n_tokens)}), flush=True)
    except M40LLMError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
