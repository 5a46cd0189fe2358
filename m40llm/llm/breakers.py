"""DRY's breakers as token ids: the engine, which chooses tokens, knows no text."""

from dataclasses import replace

from m40llm.engine.sampling_params import SamplingParams
from m40llm.text import Tokenizer


def with_breaker_ids(params: SamplingParams, tokenizer: Tokenizer) -> SamplingParams:
    """The same request; a text among `dry_breakers` stands for every token that contains it."""
    texts = [breaker for breaker in params.dry_breakers if isinstance(breaker, str)]
    if not texts or not params.dry_multiplier:
        return params
    ids = [breaker for breaker in params.dry_breakers if not isinstance(breaker, str)]
    return replace(params, dry_breakers=(*ids, *tokenizer.ids_containing(texts)))
