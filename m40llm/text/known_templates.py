"""Chat templates of architectures whose files may come without one, by general.architecture.

Jinja, as the file of an instruction-tuned model of that architecture has it, without what
handles images.
"""

from typing import Final

_GEMMA: Final = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else "") }}
    {{- message['content'] | trim }}
    {{- '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\\n' }}
{%- endif -%}
"""

# With the token that a vocabulary must have for it. Gemma 2's own has the same turns, and refuses
# what the system says, which Gemma 3's puts before the first user's turn.
KNOWN_TEMPLATES: Final = dict.fromkeys(("gemma2", "gemma3"), ("<start_of_turn>", _GEMMA))
