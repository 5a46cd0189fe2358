"""Tokens a second of decode, verified in the run that times it.

Verified: tokens and log-probabilities of each form, bit for bit those of one launch an instruction;
tokens and logits those of the transformer's own ops, within `MAX_LOGIT_ERROR`; and enough
distinct tokens that a loop that repeats itself would be seen.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from m40llm.device.decoder import Answer, Decoder, Form, SlotRequest
from m40llm.errors import DeviceError, RequestError
from m40llm.model.batch import Batch
from m40llm.model.transformer import Transformer
from m40llm.model.weights import LayerWeights
from m40llm.progress import Progress

N_CHECKED: Final = 8  # tokens that are compared with the slow ways
# An FP16 cache rounds K and V; where FP32 sums in another order have moved one across a boundary,
# logits of this spread move by hundredths.
MAX_LOGIT_ERROR: Final = 0.05
N_DISTINCT: Final = 32  # of 128 tokens
FIRST_TOKEN: Final = 5
N_REPEATS: Final = 5


@dataclass(frozen=True)
class Row:
    """One measurement. ms: of a step, which is a token of each sequence."""

    model: str
    type: str
    form: Form
    n_seqs: int
    kv: int
    n_tokens: int
    tokens_per_s: float
    ms: float
    ms_p20: float
    ms_p80: float
    bytes_a_step: int
    read_gb_per_s: float | None
    read_share: float | None
    n_distinct: int
    largest_logit_error: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def decoder_of(model: Transformer) -> Decoder:
    """RequestError where it has none."""
    if isinstance(model.decoder, str):
        raise RequestError(f"decode: {model.decoder}")
    return model.decoder


def likely_form(model: Transformer) -> Form:
    """Persistent, or the next best where that does not work."""
    return "graph" if decoder_of(model).why_not("persistent") else "persistent"


def time_decode(
    model: Transformer,
    names: tuple[str, str],
    form: Form,
    kv: int,
    n_tokens: int,
    read_bytes_per_s: float | None,
    progress: Progress | None = None,
    n_repeats: int = N_REPEATS,
) -> Row:
    """names: of the model and of its type. Every sequence begins at position `kv`."""
    decoder = decoder_of(model)
    if reason := decoder.why_not(form):
        raise RequestError(f"form: expected {' or '.join(decoder.forms)}, got {form}: {reason}")
    tell = progress or (lambda stage, fraction: None)
    error = _verify(model, decoder, form, kv, min(N_CHECKED, n_tokens), tell)
    n_seqs, samples = model.kv.n_seqs, []
    for repeat in range(n_repeats):
        seconds, answers = _run(decoder, form, n_seqs, kv, n_tokens)
        samples.append(1e3 * seconds / n_tokens)
        tell(f"timing {form}", (repeat + 1) / n_repeats)
    n_distinct = len({answer.token_id for answer in answers if answer.slot == 0})
    if n_distinct < min(N_DISTINCT, n_tokens // 4):
        raise DeviceError(f"decode: only {n_distinct} distinct tokens of {n_tokens}")
    p20, ms, p80 = (float(v) for v in np.percentile(samples, [20, 50, 80]))
    n_bytes = step_bytes(model, kv + n_tokens // 2)
    rate = read_bytes_per_s
    return Row(
        *(*names, form, n_seqs, kv, n_tokens, 1e3 * n_seqs / ms, ms, p20, p80, n_bytes),
        None if rate is None else rate / 1e9,
        None if rate is None else n_bytes / (ms / 1e3) / rate,
        n_distinct,
        error,
    )


def step_bytes(model: Transformer, seq_len: int) -> int:
    """What a step must read: each weight once, of experts the most that its tokens can use, and
    each sequence's keys and values."""
    total = 0
    for layer in model.weights.layers:
        norms = [layer.attn_norm, layer.ffn_norm, layer.attn_q_norm, layer.attn_k_norm]
        norms += [layer.post_attention_norm, layer.post_ffw_norm]
        total += sum(map(_matrix_bytes, (*layer.attn_qkv, layer.attn_output)))
        total += _ffn_bytes(model, layer)
        total += sum(4 * norm.size for norm in norms if norm is not None)
    total += _matrix_bytes(model.weights.output)
    return total + 4 * model.kv.n_seqs * seq_len * model.hp.kv_dim * model.hp.n_layers


def _ffn_bytes(model: Transformer, layer: LayerWeights) -> int:
    experts, hp = layer.experts, model.hp
    if experts is None:
        return sum(map(_matrix_bytes, (*layer.ffn_gate_up, layer.ffn_down)))
    n_used = min(model.kv.n_seqs * hp.n_experts_used, hp.n_experts)
    of_all = sum(map(_matrix_bytes, (*experts.gate_up, *experts.all_down)))
    return _matrix_bytes(experts.router) + of_all * n_used // hp.n_experts


def _matrix_bytes(w: Any) -> int:
    return sum(plane.nbytes for plane in (w.quants, w.highs, w.scales) if plane is not None)


def _run(
    decoder: Decoder, form: Form, n_seqs: int, kv: int, n_tokens: int
) -> tuple[float, list[Answer]]:
    """(seconds from the first launch to the last answer, the answers)."""
    for slot in range(n_seqs):
        request = SlotRequest(FIRST_TOKEN + slot, kv, n_tokens)
        decoder.begin(slot, request)
    begin = time.perf_counter()
    answers = list(_answers(decoder, form, n_seqs))
    seconds = time.perf_counter() - begin
    return seconds, sorted(answers, key=lambda answer: answer.slot)  # each slot's in order


def _answers(decoder: Decoder, form: Form, n_seqs: int) -> Iterator[Answer]:
    n_left = n_seqs
    while n_left:
        decoder.advance(form)
        for answer in decoder.answers():
            n_left -= answer.done is not None
            yield answer


def _verify(
    model: Transformer, decoder: Decoder, form: Form, kv: int, n: int, tell: Callable[..., Any]
) -> float:
    """The largest difference of a logit from the ops' own, over n tokens of the first sequence."""
    n_seqs = model.kv.n_seqs
    _, slow = _run(decoder, "eager", n_seqs, kv, n)
    tell(f"verifying {form}", 0.4)
    _, found = _run(decoder, form, n_seqs, kv, n)
    if found != slow:
        raise DeviceError(f"decode: {form} gives other tokens than one launch an instruction")
    tell(f"verifying {form}", 0.7)
    largest, token_id = 0.0, FIRST_TOKEN
    for i, answer in enumerate(a for a in found if a.slot == 0):
        logits = model.ops.read(model.forward(Batch.of((0, kv + i, [token_id]))))[0]
        logits = logits.astype(np.float64)
        logprobs = logits - logits.max()
        logprobs -= np.log(np.exp(logprobs).sum())
        behind = float(logits.max() - logits[answer.token_id])
        error = max(abs(float(logprobs[answer.token_id]) - answer.logprob), behind)
        largest, token_id = max(largest, error), answer.token_id
    if largest > MAX_LOGIT_ERROR:
        raise DeviceError(f"decode: a log-probability is off by {largest:.3f}")
    tell(f"verifying {form}", 1.0)
    return largest
