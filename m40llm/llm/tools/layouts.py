"""How models write tool calls: a row for each way, and how a chat template shows which it is.

Sources: the models' templates, as published with them and collected in models/templates/ of
github.com/ggml-org/llama.cpp, whose common/chat.cpp tells them apart by the same words; the parsers
in vllm/tool_parsers/ of github.com/vllm-project/vllm.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from m40llm.llm.tools.readers import CallSink, Reading, read_json_calls, read_marked_call


@dataclass(frozen=True)
class Layout:
    """One way of writing calls.

    opens       what stands before a call, or before a list of calls; models write the first
    closes      what may stand behind; models write the first
    key         of the arguments, beside "name"
    is_list     all calls of an answer stand in one [...]
    is_bare     a call may begin with nothing before it
    pad         what stands around each call within its marks
    between     what stands between calls that are opened one by one; None: an answer has one call
    args_mark   NAME, this, and the arguments, instead of an object with both
    short_ids   ids of calls have nine letters and digits, or the template refuses them
    """

    name: str
    opens: tuple[str, ...]
    closes: tuple[str, ...] = ()
    key: str = "arguments"
    is_list: bool = False
    is_bare: bool = False
    pad: str = ""
    between: str | None = None
    args_mark: str | None = None
    short_ids: bool = False

    @property
    def read(self) -> Callable[[CallSink], Reading]:
        return read_marked_call if self.args_mark else read_json_calls

    @property
    def marks(self) -> tuple[str, ...]:
        """Every text here that may be a control token."""
        extra = ("[ARGS]", "[CALL_ID]") if self.args_mark else ()
        return (*self.opens, *self.closes, *extra)

    def written(self, calls: list[tuple[str, str]]) -> str:
        """Calls (name, JSON of the arguments) as the model writes them."""
        if self.args_mark:
            bodies = [f"{name}{self.args_mark}{arguments}" for name, arguments in calls]
        else:
            bodies = [
                f'{{"name": "{name}", "{self.key}": {arguments}}}' for name, arguments in calls
            ]
        opened = "" if self.is_bare else self.opens[0]
        if self.is_list:
            return f"{opened}[{', '.join(bodies)}]{''.join(self.closes[:1])}"
        closed = "" if self.is_bare else "".join(self.closes[:1])
        return (self.between or "").join(
            f"{opened}{self.pad}{body}{self.pad}{closed}" for body in bodies
        )


# Hermes 2 Pro and 3, Qwen 2.5 and 3, QwQ, SmolLM3, Granite 4.
HERMES: Final = Layout("hermes", ("<tool_call>",), ("</tool_call>",), pad="\n", between="\n")
# Llama 3.1, 3.2, 3.3: the object alone, or behind <|python_tag|>. Their template refuses two calls
# in a message; where two come nevertheless, vLLM's llama_tool_parser.py has them parted by ";".
LLAMA3: Final = Layout("llama3", ("<|python_tag|>",), (";",), key="parameters", is_bare=True)
# Mistral 7B v0.3, Mixtral 8x22B, Nemo, Small 2409, Large 2407: tokenizers v3 and v7.
MISTRAL: Final = Layout("mistral", ("[TOOL_CALLS]",), is_list=True, short_ids=True)
# Mistral Small 3.2, Magistral, Devstral, Ministral 3: tokenizers from v11 on.
MISTRAL_ARGS: Final = Layout(
    "mistral-args", ("[TOOL_CALLS]",), args_mark="[ARGS]", between="", short_ids=True
)
# Granite 3.0 to 3.3; 3.1 at times writes the second (vLLM's granite_tool_parser.py).
GRANITE: Final = Layout("granite", ("<|tool_call|>", "<tool_call>"), is_list=True)
# Phi-4-mini, by its model card; llguidance's docs/toolcalls.md has examples.
PHI: Final = Layout("phi", ("<|tool_call|>",), ("<|/tool_call|>",), is_list=True)

LAYOUTS: Final = (HERMES, LLAMA3, MISTRAL, MISTRAL_ARGS, GRANITE, PHI)


def layout_of(template: str) -> Layout | None:
    """That of a chat template; None where it has no tools, or writes calls in another way."""

    def has(*texts: str) -> bool:
        return all(text in template for text in texts)

    if not has("tools"):
        return None
    if has("[TOOL_CALLS]"):
        return MISTRAL_ARGS if has("[ARGS]") else MISTRAL
    if has("<|tool|>"):
        return PHI
    if has("<tool_call>"):  # in Granite 4's beside <|tool_call|>
        is_xml = has("<function=") or has("<arg_key>")  # Qwen3-Coder, GLM
        return None if is_xml else HERMES
    if has("<|start_of_role|>", "<|tool_call|>"):
        return GRANITE
    if has("<|start_header_id|>", '"parameters"') and not has("<function="):
        return LLAMA3
    return None
