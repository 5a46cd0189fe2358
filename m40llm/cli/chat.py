"""`m40llm chat`: talk with a model, at a terminal or through a pipe (one message a line)."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from m40llm.cli import memory_options as mem
from m40llm.cli import options as opt
from m40llm.cli.chat_commands import QuitChat, SayAgain, run_command
from m40llm.cli.chat_session import Session
from m40llm.cli.guard import guarded
from m40llm.cli.output import loaded, print_json, speed_line, status, write_text
from m40llm.cli.prompt import read_option
from m40llm.errors import RequestError

System = Annotated[
    str | None, typer.Option(metavar="TEXT", help="The system message.", show_default=False)
]
PROMPT, PROMPT_MORE = "> ", ". "


@guarded
def chat(
    model: opt.Model,
    system: System = None,
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
    """Talk with a model, in the format of its chat template.

    Ctrl-C stops an answer, not the program; /help lists the commands (/reset, /regen, /set,
    /save, ...). Where stdin is no terminal, each line is one message. With --json the answers go
    to stderr, and stdout gets the whole conversation at the end.

    \b
    Examples:
      m40llm chat smollm2
      m40llm chat smollm2 --system "Answer in one sentence." --temp 0
      echo "What is GGUF?" | m40llm chat smollm2 -n 64 --json
    """
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
    )
    opt.check_lora(lora, lora_scale)
    how: dict[str, Any] = {"speculate": speculate, "speculate_tokens": speculate_tokens}
    how |= {"gpu_layers": mem.gpu_layers(gpu_layers), "fit": fit}
    on = device, max_seq_len, kv_type
    with loaded(model, *on, cublas, require_sm52, decode, **how) as llm:
        if known := llm.tokenizer.template_of:
            status(f"chat template: the one that {known} is known for, since the file has none")
        adapter = opt.load_lora(llm, lora, lora_scale)
        session = Session(llm, model, params, lora=adapter)
        session.set_system(system or "")
        at_terminal = sys.stdin.isatty()
        with contextlib.suppress(QuitChat):
            for line in _typed_lines() if at_terminal else _piped_lines():
                _handle(session, line, to_stderr=as_json, at_terminal=at_terminal)
        if as_json:
            head = {"model": model, "device": llm.device_name}
            print_json({**head, "messages": session.messages, "turns": session.turns})


def _handle(session: Session, line: str, *, to_stderr: bool, at_terminal: bool) -> None:
    """Run a command or answer a message; at a terminal an error is shown and we go on."""
    try:
        if line.startswith("/"):
            status(run_command(session, line))
        else:
            _answer(session, line, to_stderr=to_stderr)
    except SayAgain as again:
        _answer(session, again.text, to_stderr=to_stderr)
    except RequestError as error:
        if not at_terminal:
            raise
        status(f"error: {error}")


def _answer(session: Session, text: str, *, to_stderr: bool) -> None:
    """Answer `text` on stdout, or on stderr where stdout is kept for the JSON document."""
    ends_line = True

    def write(piece: str) -> None:
        nonlocal ends_line
        if piece:
            write_text(piece, to_stderr=to_stderr)
            ends_line = piece.endswith("\n")

    completion = session.answer(text, write)
    if not ends_line:
        write_text("\n", to_stderr=to_stderr)
    status(speed_line(completion.timings, completion.stop_reason))


def _piped_lines() -> Iterator[str]:
    """Messages from a pipe: lines that are not empty."""
    for raw in sys.stdin.buffer:
        line = raw.decode("utf-8", errors="replace").strip()
        if line:
            yield line


def _typed_lines() -> Iterator[str]:
    """Messages typed at a terminal, until Ctrl-D, or Ctrl-C twice in a row."""
    with contextlib.suppress(ImportError):  # Windows has no readline
        import readline  # noqa: F401 - gives input() its history and editing
    status("/help lists the commands, Ctrl-D leaves.")
    interrupted = False
    while True:
        try:
            message = _typed_message()
        except KeyboardInterrupt:
            print()
            if interrupted:
                return
            status("(Ctrl-C again leaves)")
            interrupted = True
            continue
        except EOFError:
            print()
            return
        interrupted = False
        if message:
            yield message


def _typed_message() -> str:
    """One message: lines that end in a backslash go on in the next one."""
    lines = [_input(PROMPT)]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(_input(PROMPT_MORE))
    return "\n".join(lines).strip()


def _input(prompt: str) -> str:
    """A typed line; the prompt never gets into a stdout that goes to a file."""
    if sys.stdout.isatty():
        return input(prompt)
    write_text(prompt, to_stderr=True)
    return input()
