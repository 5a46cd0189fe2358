"""What a request may be on a model of so many tokens."""

from collections.abc import Sequence
from operator import index

from m40llm.engine.sampling_params import SamplingParams
from m40llm.errors import RequestError


def checked_ids(ids: Sequence[int], name: str, max_seq_len: int, vocab_size: int) -> list[int]:
    """As a list of ints. RequestError for none, too many, or one out of range."""
    wanted = f"{name}: expected a text or token ids, got {ids!r}"
    if isinstance(ids, bytes | bytearray):  # a sequence of ints, but not of ids
        raise RequestError(wanted)
    try:
        checked = [index(token_id) for token_id in ids]
    except TypeError:
        raise RequestError(wanted) from None
    if not checked:
        raise RequestError(f"{name}: empty; a model needs at least one token to go on from")
    if len(checked) > max_seq_len:
        raise RequestError(
            f"{name}: {len(checked)} tokens; the context holds {max_seq_len}, "
            "a larger max_seq_len (--max-seq-len) holds more"
        )
    for token_id in (min(checked), max(checked)):
        if not 0 <= token_id < vocab_size:
            raise RequestError(f"{name}: token id {token_id}: expected 0 to {vocab_size - 1}")
    return checked


def check_params(params: SamplingParams, vocab_size: int) -> None:
    """RequestError for a token id, or a count of them, beyond the vocabulary."""
    for name, ids in (("stop_ids", params.stop_ids), ("logit_bias", params.logit_bias)):
        for token_id in ids:
            if token_id >= vocab_size:
                raise RequestError(f"{name}: token id {token_id}: expected 0 to {vocab_size - 1}")
    if params.logprobs is not None and params.logprobs > vocab_size:
        raise RequestError(f"logprobs: expected at most {vocab_size}, got {params.logprobs}")
    if params.dry_multiplier and any(isinstance(token, str) for token in params.dry_breakers):
        raise RequestError("dry_breakers: the engine takes token ids; LLM finds those of texts")
