"""SamplingParams: what a request asks of the choice of tokens, checked."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from m40llm.engine.scalars import is_number, is_whole
from m40llm.errors import RequestError

# The default order, which is llama.cpp's. engine/sampling.py has the function of each.
SAMPLERS: Final = (
    "penalties",
    "dry",
    "top_n_sigma",
    "top_k",
    "typical_p",
    "top_p",
    "min_p",
    "xtc",
    "temperature",
)

CONSTRAINTS: Final = ("json_schema", "regex", "lark")


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens, and when to stop. RequestError names a field that is out of range.

    temperature         0.8    0 is greedy: the largest logit after bias, penalties and DRY
    top_k               40     keep the k likeliest; 0 keeps all
    top_p               0.95   keep the fewest that reach this probability together; 1 keeps all
    min_p               0.05   keep those at least this fraction as likely as the likeliest
    typical_p           1.0    locally typical sampling (arXiv 2202.00666); 1 keeps all
    repetition_penalty  1.0    divides logits of tokens in prompt or answer (multiplies negative)
    presence_penalty    0.0    subtracted once from logits of tokens in the answer
    frequency_penalty   0.0    subtracted once an occurrence in the answer
    seed                None   same seed, same text; None draws one
    stop                ()     strings that end the answer; not part of it. Looked for in the text
                               between two control tokens (special ones, which have no text)
    stop_ids            ()     token ids that end it, beside the model's own
    max_tokens          None   to the end of the context
    logit_bias          {}     token id -> added to its logit; -inf bans it
    logprobs            None   also report this many likeliest tokens a position (0: the chosen)
    ignore_eos          False  go on past the model's own end tokens

    top_n_sigma         0.0    keep logits within n standard deviations of the largest; 0 keeps all
                               (arXiv 2411.07641)
    xtc_probability     0.0    how often the likeliest tokens are excluded, but for the last ...
    xtc_threshold       0.1    ... of those at least this likely
    dynatemp_range      0.0    the temperature goes this far down and up with the entropy, which is
    dynatemp_exponent   1.0    divided by its maximum and raised to this power
    dry_multiplier      0.0    times dry_base ** (n - dry_allowed_length) is subtracted from the
    dry_base            1.75   logit of a token that would go on repeating n tokens of the text;
    dry_allowed_length  2      shorter repetitions are free;
    dry_last_n          -1     only the last n tokens are looked at; -1: all;
    dry_breakers        (...)  what no repetition reaches across: texts, or token ids
    mirostat            0      2: keep the surprise of tokens near mirostat_tau bits (arXiv
                               2007.14966); takes the place of the samplers after penalties and DRY,
    mirostat_tau        5.0    but for the temperature
    mirostat_eta        0.1    how fast it learns
    samplers            (...)  which samplers, in which order; one left out is not applied
    json_schema         None   the answer is JSON of this schema, a dict or its text;
    regex               None   the whole answer matches this regular expression;
    lark                None   or this grammar of Lark; one of the three (docs/constrained.md)
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: Sequence[str] = ()
    stop_ids: Sequence[int] = ()
    max_tokens: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    ignore_eos: bool = False
    top_n_sigma: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_last_n: int = -1
    dry_breakers: Sequence[str | int] = ("\n", ":", '"', "*")
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    samplers: Sequence[str] = SAMPLERS
    json_schema: Mapping[str, Any] | str | None = None
    regex: str | None = None
    lark: str | None = None

    def __post_init__(self) -> None:
        _check_range("temperature", self.temperature, 0.0, 1e3)
        _check_range("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _check_range("min_p", self.min_p, 0.0, 1.0)
        _check_range("typical_p", self.typical_p, 0.0, 1.0, open_low=True)
        _check_range("repetition_penalty", self.repetition_penalty, 0.0, 1e3, open_low=True)
        _check_range("presence_penalty", self.presence_penalty, -1e3, 1e3)
        _check_range("frequency_penalty", self.frequency_penalty, -1e3, 1e3)
        _check_int("top_k", self.top_k, 0)
        _check_int("seed", self.seed, 0, is_optional=True)
        _check_int("max_tokens", self.max_tokens, 1, is_optional=True)
        _check_int("logprobs", self.logprobs, 0, is_optional=True)
        object.__setattr__(self, "stop", _stop_strings(self.stop))
        object.__setattr__(self, "stop_ids", _stop_ids(self.stop_ids))
        _check_bias(self.logit_bias)
        self._check_rare()

    def _check_rare(self) -> None:
        """The fields that few requests set."""
        _check_range("top_n_sigma", self.top_n_sigma, 0.0, 1e3)
        _check_range("xtc_probability", self.xtc_probability, 0.0, 1.0)
        _check_range("xtc_threshold", self.xtc_threshold, 0.0, 1.0)
        _check_range("dynatemp_range", self.dynatemp_range, 0.0, 1e3)
        _check_range("dynatemp_exponent", self.dynatemp_exponent, 0.0, 1e3)
        _check_range("dry_multiplier", self.dry_multiplier, 0.0, 1e3)
        _check_range("dry_base", self.dry_base, 1.0, 1e3)
        _check_int("dry_allowed_length", self.dry_allowed_length, 1)
        _check_int("dry_last_n", self.dry_last_n, -1)
        object.__setattr__(self, "dry_breakers", _dry_breakers(self.dry_breakers))
        if isinstance(self.mirostat, bool) or self.mirostat not in (0, 2):
            raise RequestError(f"mirostat: expected 0 (off) or 2, got {self.mirostat!r}")
        _check_range("mirostat_tau", self.mirostat_tau, 0.0, 1e3)
        _check_range("mirostat_eta", self.mirostat_eta, 0.0, 1.0)
        object.__setattr__(self, "samplers", _samplers(self.samplers))
        _check_constraint(self)

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0


def _check_constraint(params: SamplingParams) -> None:
    """What the grammar itself must be like, whoever reads it says."""
    given = [name for name in CONSTRAINTS if getattr(params, name) is not None]
    if len(given) > 1:
        raise RequestError(f"{given[1]}: expected no {given[0]} beside it")
    for name in given:
        value, is_json = getattr(params, name), name == "json_schema"
        if not isinstance(value, str) and not (is_json and isinstance(value, Mapping)):
            wanted = "a text or a mapping" if is_json else "a text"
            raise RequestError(f"{name}: expected {wanted}, got {type(value).__name__}")
        if params.ignore_eos:
            raise RequestError(f"{name}: expected ignore_eos False: the answer ends by itself")


def _check_range(name: str, value: Any, low: float, high: float, *, open_low: bool = False) -> None:
    inside = is_number(value) and (low < value if open_low else low <= value) and value <= high
    if not inside:
        above = f"above {low:g}" if open_low else f"from {low:g}"
        raise RequestError(f"{name}: expected a number {above} to {high:g}, got {value!r}")


def _check_int(name: str, value: Any, low: int, *, is_optional: bool = False) -> None:
    if value is None and is_optional:
        return
    if not is_whole(value) or value < low or value >= 2**63:
        raise RequestError(f"{name}: expected an integer from {low}, got {value!r}")


def _stop_strings(stop: Any) -> tuple[str, ...]:
    is_list = isinstance(stop, Sequence | set | frozenset) and not isinstance(stop, str)
    strings = tuple(stop) if is_list else (stop,)
    if not all(isinstance(s, str) and s for s in strings):
        raise RequestError(f"stop: expected non-empty strings, got {stop!r}")
    return strings


def _stop_ids(stop_ids: Any) -> tuple[int, ...]:
    try:
        ids = tuple(stop_ids)
    except TypeError:
        raise RequestError(f"stop_ids: expected token ids, got {stop_ids!r}") from None
    for token_id in ids:
        _check_int("stop_ids", token_id, 0)
    return ids


def _check_bias(bias: Any) -> None:
    if not isinstance(bias, Mapping):
        raise RequestError(f"logit_bias: expected a mapping of token id to number, got {bias!r}")
    for token_id, value in bias.items():
        _check_int("logit_bias: token id", token_id, 0)
        if not isinstance(value, int | float) or math.isnan(value) or value == math.inf:
            raise RequestError(f"logit_bias: expected a finite number or -inf, got {value!r}")


def _dry_breakers(breakers: Any) -> tuple[str | int, ...]:
    is_list = isinstance(breakers, Sequence | set | frozenset) and not isinstance(breakers, str)
    listed = tuple(breakers) if is_list else (breakers,)
    for breaker in listed:
        if not isinstance(breaker, str):
            _check_int("dry_breakers", breaker, 0)
        elif not breaker:
            raise RequestError(f"dry_breakers: expected non-empty strings, got {breakers!r}")
    return listed


def _samplers(samplers: Any) -> tuple[str, ...]:
    is_list = isinstance(samplers, Sequence) and not isinstance(samplers, str)
    listed = tuple(samplers) if is_list else ()
    if not is_list or any(name not in SAMPLERS for name in listed):
        raise RequestError(f"samplers: expected some of {', '.join(SAMPLERS)}, got {samplers!r}")
    if len(set(listed)) < len(listed):
        raise RequestError(f"samplers: expected each name once, got {samplers!r}")
    return listed
