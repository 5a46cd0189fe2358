"""`m40llm generate`: continue a text."""

import dataclasses
from typing import TYPE_CHECKING, Any

from m40llm.cli import memory_options as mem
from m40llm.cli import options as opt
from m40llm.cli.guard import guarded
from m40llm.cli.output import loaded, print_json, speed_line, status, write_text
from m40llm.cli.prompt import read_option, read_text

if TYPE_CHECKING:
    from m40llm.llm import Completion, TextStream


@guarded
def generate(
    model: opt.Model,
    prompt: opt.Prompt = None,
    file: opt.PromptFile = None,
    max_tokens: opt.MaxTokens = None,
    temperature: opt.Temperature = opt.DEFAULTS["temperature"],
    top_k: opt.TopK = opt.DEFAULTS["top_k"],
    top_p: opt.TopP = opt.DEFAULTS["top_p"],
    min_p: opt.MinP = opt.DEFAULTS["min_p"],
    typical_p: opt.TypicalP = opt.DEFAULTS["typical_p"],
    repetition_penalty: opt.RepetitionPenalty = opt.DEFAULTS["repetition_penalty"],
    presence_penalty: opt.PresencePenalty = opt.DEFAULTS["presence_penalty"],
    frequency_penalty: opt.FrequencyPenalty = opt.DEFAULTS["frequency_penalty"],
    seed: opt.Seed = None,
    stop: opt.Stop = None,
    settings: opt.Set = None,
    json_schema: opt.JsonSchema = None,
    regex: opt.Regex = None,
    lark: opt.Lark = None,
    ignore_eos: opt.IgnoreEos = False,
    device: opt.Device = "auto",
    max_seq_len: opt.MaxSeqLen = None,
    kv_type: opt.KVType = None,
    cublas: opt.Cublas = None,
    require_sm52: opt.RequireSm52 = False,
    gpu_layers: mem.GpuLayers = None,
    fit: mem.Fit = False,
    decode: opt.Decode = None,
    speculate: opt.Speculate = None,
    speculate_tokens: opt.SpeculateTokens = None,
    lora: opt.Lora = None,
    lora_scale: opt.LoraScale = None,
    as_json: opt.AsJson = False,
    debug: opt.Debug = False,
) -> None:
    """Continue a text: the model's words stream to stdout as they come.

    The text is given to the model as it stands, with no chat template (for that: m40llm chat),
    and is not repeated in the output. Device and speed are told on stderr.

    \b
    Examples:
      m40llm generate smollm2 -p "The capital of France is" -n 16
      m40llm generate model.gguf -f story.txt --temp 0 --stop "The end"
      m40llm generate smollm2 -p "1, 2, 3," -n 8 --seed 7 --json
    """
    text = read_text(prompt, file)
    params = opt.sampling_params(
        stop,
        settings,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        typical_p=typical_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        seed=seed,
        json_schema=read_option("--json-schema", json_schema),
        regex=regex,
        lark=read_option("--lark", lark),
        ignore_eos=ignore_eos,
    )
    opt.check_lora(lora, lora_scale)
    how: dict[str, Any] = {"speculate": speculate, "speculate_tokens": speculate_tokens}
    how |= {"gpu_layers": mem.gpu_layers(gpu_layers), "fit": fit}
    on = device, max_seq_len, kv_type
    with loaded(model, *on, cublas, require_sm52, decode, **how) as llm:
        adapter = opt.load_lora(llm, lora, lora_scale)
        completion = _run(llm.stream(text, params, lora=adapter), show=not as_json)
        if as_json:
            print_json({"model": model, "device": llm.device_name, **_document(completion)})
        status(speed_line(completion.timings, completion.stop_reason))


def _run(stream: "TextStream", *, show: bool) -> "Completion":
    """Take the stream to its end, showing the text as it comes; end it with a line's end."""
    last = ""
    try:
        for item in stream:
            if show:
                write_text(item.text)
            last = item.text or last
    finally:
        stream.close()
        if show and last and not last.endswith("\n"):
            write_text("\n")
    return stream.completion


def _document(completion: "Completion") -> dict[str, Any]:
    return {
        "prompt_ids": completion.prompt_ids,
        "ids": completion.ids,
        "text": completion.text,
        "stop_reason": completion.stop_reason,
        "timings": dataclasses.asdict(completion.timings),
    }
