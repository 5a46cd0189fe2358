"""The options that several verbs share, each written once: its flag, its type, its help.

Sampling defaults repeat those of `SamplingParams`, so that --help shows them without loading
NumPy; a test compares the two.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from m40llm.cli.flags import with_flag
from m40llm.errors import RequestError

if TYPE_CHECKING:
    from m40llm.engine.sampling_params import SamplingParams
    from m40llm.llm import LLM

# Those of engine/decode_step.py; a test compares.
_DECODE_CHOICES = ("auto", "host", "eager", "graph", "persistent")
_KV_TYPES = ("f16", "q8_0")  # those of model/kv_cache.py; a test compares
_DEVICE = re.compile(r"auto|cpu|emulator|cuda(:-?\d+)?")


def _check_device(value: str) -> str:
    if not _DEVICE.fullmatch(value):
        raise typer.BadParameter(f"expected auto, cpu, cuda, cuda:N or emulator, got {value!r}")
    return value


def _check_decode(value: str | None) -> str | None:
    if value is not None and value not in _DECODE_CHOICES:
        raise typer.BadParameter(f"expected {', '.join(_DECODE_CHOICES)}, got {value!r}")
    return value


def _check_kv_type(value: str | None) -> str | None:
    if value is not None and value not in _KV_TYPES:
        raise typer.BadParameter(f"expected {' or '.join(_KV_TYPES)}, got {value!r}")
    return value


MODEL_HELP = "A GGUF file, a known name (m40llm pull --list) or hf:OWNER/REPO/FILE.gguf."
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help=MODEL_HELP,
        show_default=False,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        metavar="auto|cpu|cuda|cuda:N|emulator",
        help="Where to compute; auto takes a usable GPU, else the CPU.",
        callback=_check_device,
    ),
]
MaxSeqLen = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Tokens of context to make room for.  [default: as the model was trained]",
        show_default=False,
    ),
]
KVType = Annotated[
    str | None,
    typer.Option(
        "--kv-type",
        metavar="f16|q8_0",
        help="What keys and values are cached in: f16 (FP32 on cpu), or q8_0, about half as large "
        "(docs/parity_and_kv_layout.md), which --decode persistent does not read.  "
        "[default: f16, or what --fit chooses]",
        callback=_check_kv_type,
        show_default=False,
    ),
]
Cublas = Annotated[
    bool | None,
    typer.Option(
        "--cublas/--no-cublas",
        help="Matrix products on a card by cuBLAS; the default is M40LLM_ENABLE_CUBLAS (0 or 1).",
        show_default=False,
    ),
]
RequireSm52 = Annotated[
    bool, typer.Option("--require-sm52", help="Refuse any card but an sm_52 one (Tesla M40).")
]
Decode = Annotated[
    str | None,
    typer.Option(
        metavar="auto|host|eager|graph|persistent",
        help="Who makes the tokens: host enqueues op after op and chooses; on a card or the "
        "emulator, the device can choose, too: by single launches, a graph, or one launch. auto "
        "takes the fastest, measured at the first use.  [default: auto on a card, else host]",
        callback=_check_decode,
        show_default=False,
    ),
]
Speculate = Annotated[
    str | None,
    typer.Option(
        metavar="ngram|MODEL",
        help="Propose tokens, of which the model checks several at once: what followed the last "
        "time that the text went like this, or a smaller model of the same vocabulary. The "
        "answers stay the model's own (docs/speculative.md).",
        show_default=False,
    ),
]
SpeculateTokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=64,  # MAX_PROPOSALS of engine/speculate.py; a test compares
        metavar="N",
        help="How many tokens are proposed at a time, 1 to 64.  [default: 15 of ngram, 4 of a "
        "model]",
        show_default=False,
    ),
]
JsonSchema = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="The answer is JSON of the schema in this file (docs/constrained.md).",
        show_default=False,
    ),
]
Regex = Annotated[
    str | None,
    typer.Option(
        metavar="PATTERN",
        help="The whole answer matches this regular expression.",
        show_default=False,
    ),
]
Lark = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="The answer is one of the Lark grammar in this file.",
        show_default=False,
    ),
]
Lora = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="A LoRA adapter (GGUF), added to the model's weights while it runs (docs/lora.md).",
        show_default=False,
    ),
]
LoraScale = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="How many times as strong as it was trained to be.  [default: 1]",
        show_default=False,
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON document (docs/cli.md lists its keys).")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")]
Prompt = Annotated[
    str | None,
    typer.Option("-p", "--prompt", metavar="TEXT", help="The text; - reads it from stdin."),
]
PromptFile = Annotated[
    str | None, typer.Option("-f", "--file", metavar="FILE", help="Read the text from a file.")
]

MaxTokens = Annotated[
    int | None,
    typer.Option(
        "-n",
        "--max-tokens",
        metavar="N",
        help="Most tokens to generate.  [default: to the context's end]",
        show_default=False,
    ),
]
Temperature = Annotated[
    float,
    typer.Option("--temp", "--temperature", help="0 always takes the likeliest token (greedy)."),
]
TopK = Annotated[int, typer.Option(help="Keep the K likeliest tokens; 0 keeps all.")]
TopP = Annotated[float, typer.Option(help="Keep the likeliest tokens of this total probability.")]
MinP = Annotated[
    float, typer.Option(help="Drop tokens below this share of the likeliest one's probability.")
]
TypicalP = Annotated[float, typer.Option(help="Locally typical sampling; 1 turns it off.")]
RepetitionPenalty = Annotated[
    float, typer.Option(help="Above 1 makes tokens already seen less likely.")
]
PresencePenalty = Annotated[
    float, typer.Option(help="Subtracted from the logit of each token already generated.")
]
FrequencyPenalty = Annotated[
    float, typer.Option(help="The same, for each time that it was generated.")
]
Seed = Annotated[
    int | None,
    typer.Option(metavar="N", help="The same seed gives the same text.", show_default=False),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help="Stop before this text; may be given several times."),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any other sampling parameter (several times): xtc_probability=0.5, "
        "dry_multiplier=0.8, top_n_sigma=1, dynatemp_range=0.5, mirostat=2, "
        "samplers=top_k,temperature, ...; docs/cli.md lists them.",
        show_default=False,
    ),
]
IgnoreEos = Annotated[
    bool, typer.Option("--ignore-eos", help="Go on when the model says that it is done.")
]

DEFAULTS: dict[str, Any] = {
    "temperature": 0.8,
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.05,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


def check_lora(path: str | None, scale: float | None) -> None:
    """Before a model is loaded: a scale without an adapter, or a file that is not there."""
    if path is None and scale is not None:
        raise RequestError("lora_scale: expected --lora beside it")
    if path is not None and not Path(path).is_file():
        raise RequestError(f"lora: no such file: {path}")


def load_lora(llm: "LLM", path: str | None, scale: float | None) -> str | None:
    """The name of the adapter that was asked for."""
    if path is None:
        return None
    return llm.load_lora(path, scale=1.0 if scale is None else scale)


def sampling_params(
    stop: list[str] | None, pairs: list[str] | None = None, **fields: Any
) -> "SamplingParams":
    """The `SamplingParams` of the options given; a bad value is a usage error (exit code 2).

    `pairs`, those of --set, speak last.
    """
    from m40llm.cli.sampling_keys import parsed_pairs
    from m40llm.engine.sampling_params import SamplingParams

    try:
        return SamplingParams(stop=tuple(stop or ()), **(fields | parsed_pairs(pairs)))
    except RequestError as error:
        raise typer.BadParameter(with_flag(str(error))) from error
