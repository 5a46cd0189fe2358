"""What masks cost: ms a token of an answer held to a JSON schema, and of one that is free.

One sequence of a real shape with drawn weights. llguidance makes the masks, of a drawn vocabulary
as large as the shape's, while the device computes the next logits: docs/constrained.md. A mask
takes MASK_MS at least, the median of SmolLM2's own on a slow machine: drawn words are easy.
Verified first: the tokens of each form are those of one launch an instruction, bit for bit; each is
one that its mask allows, and none of those is likelier by the transformer's own ops.

    python benchmarks/constrained_decode.py [--shape 1b] [--type F16,Q4_0] [--form persistent]
"""

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np
from prefill_beside_decode import model_on

from m40llm.bench.decode import MAX_LOGIT_ERROR
from m40llm.bench.shapes import TYPES
from m40llm.device.decoder import FORMS, Form, SlotRequest
from m40llm.engine.constraint import Constraint, ids_of
from m40llm.engine.decode_step import decode
from m40llm.engine.sampling_params import SamplingParams
from m40llm.errors import DeviceError, M40LLMError
from m40llm.llm.constraint import Constraints
from m40llm.model.batch import Batch
from m40llm.model.transformer import Transformer

N_TOKENS, N_CHECKED, N_REPEATS, FIRST_TOKEN = 256, 16, 5, 5
MASK_MS = 0.15
N_BYTES = 256  # the first tokens are the bytes
MARKS = ('"', '",', '": "', '": ', "{", '{"', "}", "},", "[", "]", ", ", ":", "\n", "  ")
ITEM = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "n": {"type": "integer"}},
    "required": ["name", "n"],
    "additionalProperties": False,
}
SCHEMA = {"type": "array", "items": ITEM, "minItems": 100}  # no end before the tokens' end


class DrawnTokenizer:
    """What llguidance asks of a tokenizer: bytes, what JSON is made of, and drawn words."""

    bos_id = None

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size, self.stop_ids = vocab_size, frozenset({vocab_size - 1})
        rng = np.random.default_rng(0)
        letters = np.array(list(b"etaoinshrdlucmfwypvbgkjqxzETAOINSHRD0123456789"), np.uint8)
        words = (letters[rng.integers(0, letters.size, n)] for n in rng.integers(2, 12, vocab_size))
        found = [bytes([byte]) for byte in range(N_BYTES)] + [mark.encode() for mark in MARKS]
        found += [b" " * (i & 1) + word.tobytes() for i, word in enumerate(words)]
        self._tokens = [*found[: vocab_size - 1], b"<end>"]

    def token_bytes(self, token_id: int) -> bytes:
        return self._tokens[token_id]

    @property
    def special_ids(self) -> list[int]:
        return sorted(self.stop_ids)

    def encode_inside(self, text: str) -> list[int]:
        return list(text.encode())


class TimedMasks:
    """Another constraint, whose masks take MASK_MS at least; and how long each took, in ms."""

    def __init__(self, constraint: Constraint) -> None:
        self._constraint = constraint
        self.ms: list[float] = []

    def mask(self) -> Any:
        begin = time.perf_counter()
        mask = self._constraint.mask()
        while time.perf_counter() - begin < 1e-3 * MASK_MS:
            pass
        self.ms.append(1e3 * (time.perf_counter() - begin))
        return mask

    def heed(self, token_id: int) -> None:
        self._constraint.heed(token_id)

    def fork(self) -> "TimedMasks":
        return TimedMasks(self._constraint.fork())


def run(
    model: Transformer, form: Form, n_tokens: int, constraint: Constraint | None = None
) -> tuple[list[tuple[int, float]], float]:
    """(tokens and log-probabilities, ms a token from the first one's arrival to the last one's)."""
    decoder = model.decoder
    if isinstance(decoder, str):
        raise DeviceError(decoder)
    found, arrivals = [], []
    request = SlotRequest(FIRST_TOKEN, 0, n_tokens)
    for answer in decode(decoder, form, request, constraint=constraint):
        arrivals.append(time.perf_counter())
        found.append((answer.token_id, answer.logprob))
    return found, 1e3 * (arrivals[-1] - arrivals[0]) / (n_tokens - 1)


def verify(model: Transformer, form: Form, constraints: Constraints, n: int) -> float:
    """The largest difference of a log-probability from the ops' own; DeviceError if too large."""
    params = SamplingParams(json_schema=SCHEMA)
    slow, _ = run(model, "eager", n, constraints.of(params))
    found, _ = run(model, form, n, constraints.of(params))
    if found != slow:
        raise DeviceError(f"{form} gives other tokens than one launch an instruction")
    constraint, largest, last = constraints.of(params), 0.0, FIRST_TOKEN
    assert constraint is not None
    for pos, (token_id, logprob) in enumerate(found):
        allowed = ids_of(constraint.mask(), model.hp.vocab_size)
        if token_id not in allowed:
            raise DeviceError(f"token {token_id} at {pos} is one that its mask does not allow")
        logits = model.ops.read(model.forward(Batch.of((0, pos, [last]))))[0].astype(np.float64)
        own = logits[token_id] - logits.max() - np.log(np.exp(logits - logits.max()).sum())
        behind = logits[allowed].max() - logits[token_id]
        largest = max(largest, abs(own - logprob), behind)
        constraint.heed(token_id)
        last = token_id
    if largest > MAX_LOGIT_ERROR:
        raise DeviceError(f"a log-probability is off by {largest:.3f}")
    return float(largest)


def measure(model: Transformer, form: Form, constraints: Constraints) -> dict[str, Any]:
    """One row; free and constrained answers by turns, medians of ms a token."""
    error = verify(model, form, constraints, min(N_CHECKED, N_TOKENS))
    free, held, mask_ms = [], [], []
    for _ in range(N_REPEATS):
        free.append(run(model, form, N_TOKENS)[1])
        constraint = constraints.of(SamplingParams(json_schema=SCHEMA))
        assert constraint is not None
        timed = TimedMasks(constraint)
        held.append(run(model, form, N_TOKENS, timed)[1])
        mask_ms += timed.ms
    ratios = [b / a for a, b in zip(free, held, strict=True)]
    return {
        "form": form,
        "n_tokens": N_TOKENS,
        "mask_ms": statistics.median(mask_ms),
        "free_ms": statistics.median(free),
        "constrained_ms": statistics.median(held),
        "ratio": statistics.median(ratios),
        "worst_ratio": max(ratios),
        "largest_logit_error": error,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="1b", help="135m, 1b or 8b")
    parser.add_argument("--type", default="F16", help=f"of the weights, some of {','.join(TYPES)}")
    parser.add_argument("--form", default="persistent", help=f"some of {','.join(FORMS)}")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or emulator")
    args = parser.parse_args()
    try:
        for kind in args.type.split(","):
            model = model_on(
                args.device, args.shape, kind, n_seqs=1, max_seq_len=N_TOKENS + 1, max_tokens=1
            )
            decoder, vocab_size = model.decoder, model.hp.vocab_size
            if isinstance(decoder, str):
                raise DeviceError(decoder)
            tokenizer: Any = DrawnTokenizer(vocab_size)
            constraints = Constraints(tokenizer, vocab_size)
            of_model = {"bench": "constrained_decode", "model": args.shape, "type": kind}
            for form in args.form.split(","):
                row = {**of_model, "device": decoder.device, **measure(model, form, constraints)}
                print(json.dumps(row), flush=True)
    except M40LLMError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
