"""Chat templates and tiny vocabularies for the tests of tools.

The templates are short ones that write what the published ones of their kind write of tools and
calls, and refuse what these refuse.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gguf import TokenType

from m40llm.llm.tools.layouts import layout_of
from m40llm.testing import write_tiny_gguf
from m40llm.testing.vocab import bpe_metadata, spm_metadata
from m40llm.text import Tokenizer, tokenizer_from_gguf

N_TOKENS = 500
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- '# Tools\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' + (tool | tojson) }}
    {%- endfor %}
    {{- '\\n</tools>\\nFor each call, an object within <tool_call></tool_call>:\\n<tool_call>\\n' }}
    {{- '{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
        {{- '<|im_start|>assistant\\n' + content }}
        {%- for tool_call in message.tool_calls or [] %}
            {%- if (loop.first and content) or not loop.first %}
                {{- '\\n' }}
            {%- endif %}
            {%- if tool_call.function %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' }}
            {%- set arguments = tool_call.arguments %}
            {{- arguments if arguments is string else arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
LLAMA = """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role in ['ipython', 'tool'] or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {%- if message.role == 'user' and tools is not none and loop.first %}
            {{- 'Respond in the format {"name": function name, "parameters": dictionary}.\\n\\n' }}
            {%- for t in tools %}
                {{- t | tojson(indent=4) + '\\n\\n' }}
            {%- endfor %}
        {%- endif %}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
        {{- '{"name": "' + tool_call.name + '", ' }}
        {{- '"parameters": ' + (tool_call.arguments | tojson) + '}<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + message.content + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
NEMO = """{{- bos_token }}
{%- set users = messages | selectattr('role', 'equalto', 'user') | list %}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {%- if tools is not none and message == users[-1] %}
            {{- '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}
        {%- endif %}
        {{- '[INST]' + message['content'] + '[/INST]' }}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- '[TOOL_CALLS][' }}
        {%- for tool_call in message.tool_calls %}
            {{- (tool_call.function | tojson)[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id | length != 9 %}
                {{- raise_exception('Tool call IDs should be of length 9!') }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' + (']' + eos_token if loop.last else ', ') }}
        {%- endfor %}
    {%- elif message['role'] == 'tool' %}
        {%- if not message.tool_call_id is defined or message.tool_call_id | length != 9 %}
            {{- raise_exception('Tool call IDs should be of length 9!') }}
        {%- endif %}
        {{- '[TOOL_RESULTS]{"content": ' + message.content + ', "call_id": "' }}
        {{- message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- message['content'] + eos_token }}
    {%- endif %}
{%- endfor %}
"""
MAGISTRAL = (
    NEMO.replace("[TOOL_CALLS][", "")
    .replace("(tool_call.function | tojson)[:-1]", "'[TOOL_CALLS]' + tool_call.function.name")
    .replace(
        """', "id": "' + tool_call.id + '"}' + (']' + eos_token if loop.last else ', ')""",
        "'[ARGS]' + (tool_call.function.arguments | tojson)",
    )
)
GRANITE = """{%- set system = '' %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] %}
{%- elif available_tools %}
    {%- set system = 'Respond only with <|tool_call|> followed by a JSON list of tools used.' %}
{%- endif %}
{{- '<|start_of_role|>system<|end_of_role|>' + system + '<|end_of_text|>\\n' }}
{%- if available_tools %}
    {{- '<|start_of_role|>available_tools<|end_of_role|>' + (available_tools | tojson) }}
    {{- '<|end_of_text|>\\n' }}
{%- endif %}
{%- for message in messages if message.role != 'system' %}
    {{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] }}
    {{- '<|end_of_text|>\\n' }}
{%- endfor %}
{{- '<|start_of_role|>assistant<|end_of_role|>' }}
"""
PHI = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' and 'tools' in message and message['tools'] is not none %}"
    "{{ '<|system|>' + message['content'] + '<|tool|>' + message['tools'] + '<|/tool|><|end|>' }}"
    "{% else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SMOLLM3 = """{{- '<|im_start|>system\\n' }}
{%- if xml_tools %}
    {{- '### Tools\\nwithin <tool_call></tool_call> tags\\n' }}
    {%- for tool in xml_tools[:] %}
        {{- (tool | string) + '\\n' }}
    {%- endfor %}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {{- '<|im_start|>' + ('user' if message.role == 'tool' else message.role) + '\\n' + content }}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{{- '<|im_start|>assistant\\n' }}
"""
TEMPLATES = {
    "hermes": QWEN,
    "llama3": LLAMA,
    "mistral": NEMO,
    "mistral-args": MAGISTRAL,
    "granite": GRANITE,
    "phi": PHI,
}
WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"enum": ["Paris", "Rome"]},
            "days": {"type": "integer", "minimum": 0, "maximum": 9},
        },
        "required": ["city", "days"],
    },
}
TOOLS = [
    {"type": "function", "function": WEATHER},
    {"type": "function", "function": {"name": "stop"}},
]
STOP = {"name": "stop", "parameters": {"type": "object", "properties": {}}}


def write_model(
    path: Path,
    template: str | None,
    vocabulary: str = "bpe",
    control: Sequence[str] = (),
    user_defined: Sequence[str] = (),
    more_keys: dict[str, Any] | None = None,
    **shape: Any,
) -> Path:
    """A tiny random model whose vocabulary has these tokens, too."""
    keys = (bpe_metadata if vocabulary == "bpe" else spm_metadata)(N_TOKENS)
    for n, token in enumerate([*control, *user_defined]):
        type_ = TokenType.CONTROL if token in control else TokenType.USER_DEFINED
        keys["tokenizer.ggml.tokens"][N_TOKENS - 1 - n] = token
        keys["tokenizer.ggml.token_type"][N_TOKENS - 1 - n] = int(type_)
    arch = "qwen2" if vocabulary == "bpe" else "llama"
    shape = {"n_layers": 1, "vocab_size": N_TOKENS, "chat_template": template, **shape}
    return write_tiny_gguf(path, arch=arch, metadata=keys | (more_keys or {}), **shape)


def tokenizer_with(path: Path, template: str | None, *how: Any, **tokens: Any) -> Tokenizer:
    """That of such a model, written there."""
    return tokenizer_from_gguf(write_model(path, template, *how, **tokens))


def marks_of(template: str) -> list[str]:
    """What its format has that may be a control token."""
    layout = layout_of(template)
    assert layout is not None
    return [mark for mark in layout.marks if mark != ";"]
