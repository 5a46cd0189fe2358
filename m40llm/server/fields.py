"""Fields that several requests have, as pydantic models; where OpenAI is strict, so are they."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from m40llm.engine.sampling_params import CONSTRAINTS, SamplingParams
from m40llm.server.errors import ApiError

STRICT: Final = ConfigDict(
    extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=()
)
Ignored = Annotated[Any, Field(description="Accepted; it changes nothing here.")]
Refused = Annotated[None, Field(description="Not supported: anything but null is refused.")]
Text = Annotated[str, Field(min_length=1)]


def _integer(value: Any) -> Any:
    """JSON does not tell 3.0 from 3, and neither does JSON Schema."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Int = Annotated[int, BeforeValidator(_integer)]
TokenId = Annotated[Int, Field(ge=0, lt=2**31)]
NEUTRAL: Final = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}  # OpenAI's defaults
_LEAST_TOP_P: Final = 1e-9  # OpenAI's 0: the likeliest alone


class Samplers(BaseModel):
    """Fields of `SamplingParams` by their own names; null is the default (docs/cli.md)."""

    model_config = STRICT

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[Int, Field(ge=0)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[Int, Field(ge=-(2**63), lt=2**63)] | None = None
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=1e3)] | None = None
    stop_ids: Annotated[list[TokenId], Field(max_length=100)] | None = None
    ignore_eos: bool | None = None
    top_n_sigma: Annotated[float, Field(ge=0, le=1e3)] | None = None
    xtc_probability: Annotated[float, Field(ge=0, le=1)] | None = None
    xtc_threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    dynatemp_range: Annotated[float, Field(ge=0, le=1e3)] | None = None
    dynatemp_exponent: Annotated[float, Field(ge=0, le=1e3)] | None = None
    dry_multiplier: Annotated[float, Field(ge=0, le=1e3)] | None = None
    dry_base: Annotated[float, Field(ge=1, le=1e3)] | None = None
    dry_allowed_length: Annotated[Int, Field(ge=1)] | None = None
    dry_last_n: Annotated[Int, Field(ge=-1)] | None = None
    dry_breakers: Annotated[list[Text | TokenId], Field(max_length=100)] | None = None
    mirostat: Int | None = None
    mirostat_tau: Annotated[float, Field(ge=0, le=1e3)] | None = None
    mirostat_eta: Annotated[float, Field(ge=0, le=1)] | None = None
    samplers: list[str] | None = None
    json_schema: dict[str, Any] | str | None = None
    regex: str | None = None
    lark: str | None = None

    def given(self) -> dict[str, Any]:
        """Fields that are not null."""
        names = Samplers.model_fields
        found = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if found.get("top_p") == 0:
            found["top_p"] = _LEAST_TOP_P
        if "seed" in found:
            found["seed"] %= 2**63
        return found


Bias = Annotated[float, Field(ge=-100, le=100)]
BiasKey = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]


class StreamOptions(BaseModel):
    model_config = STRICT

    include_usage: bool | None = None
    include_obfuscation: Ignored = None


class OpenAIFields(Samplers):
    """What chat and text completions of OpenAI's API share."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[Int, Field(ge=1, le=128)] | None = None
    max_tokens: Annotated[Int, Field(ge=1)] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=4)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[BiasKey, Bias] | None = None
    user: Ignored = None

    def given(self) -> dict[str, Any]:
        found = NEUTRAL | super().given()
        for name in ("presence_penalty", "frequency_penalty"):
            if getattr(self, name) is not None:
                found[name] = getattr(self, name)
        if self.stop is not None:
            found["stop"] = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if self.logit_bias is not None:
            found["logit_bias"] = {int(key): value for key, value in self.logit_bias.items()}
        return found

    @property
    def has_usage_chunk(self) -> bool:
        """RequestError's kind of refusal where usage is asked of what is no stream."""
        if self.stream_options is None:
            return False
        if not self.stream:
            told = "stream_options: expected stream true beside it"
            raise ApiError(400, told, code="invalid_value", param="stream_options")
        return bool(self.stream_options.include_usage)


def sampling_params(
    fields: Mapping[str, Any], n_tokens: int | None, most: int | None
) -> SamplingParams:
    """Checked once more, by the engine's own rules; `n_tokens` and `most`: asked for, allowed."""
    if n_tokens is not None and most is not None and n_tokens > most:
        told = f"max_tokens: this server gives at most {most}, {n_tokens} were asked for"
        raise ApiError(400, told, code="max_tokens_too_large", param="max_tokens")
    constraint = next((name for name in CONSTRAINTS if fields.get(name) is not None), None)
    if constraint is not None:
        need_llguidance(constraint)
    return SamplingParams(max_tokens=most if n_tokens is None else n_tokens, **fields)


def need_llguidance(param: str) -> None:
    """ApiError where it is not installed."""
    if find_spec("llguidance") is None:
        told = f'{param}: this server lacks llguidance: pip install "m40llm[constrain]"'
        raise ApiError(501, told, code="constrain_missing", param=param)
