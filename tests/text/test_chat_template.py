"""Chat templates: the shapes that people's files have, broken ones, and hostile ones."""

import time
from pathlib import Path

import pytest
from vocab_files import bpe_keys, spm_keys, write

from m40llm.errors import ModelFileError, RequestError
from m40llm.text import Tokenizer, tokenizer_from_gguf
from m40llm.text.chat_template import ChatTemplate
from m40llm.text.known_templates import KNOWN_TEMPLATES

SYSTEM = {"role": "system", "content": "Be kind."}
HI = {"role": "user", "content": "Hi <b> & é "}
HELLO = {"role": "assistant", "content": "Hello"}
BYE = {"role": "user", "content": "Bye"}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are Qwen.' }}
    {%- endif %}
    {{- "\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- endif %}
{%- for message in messages[1:] if message.role != "system" %}
    {{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' }}
{%- endfor %}
"""
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user/assistant') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ message['content'] + eos_token}}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{% set role = 'model' if message.role == 'assistant' else message.role %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)


def render(source: str, *messages: dict, **variables: object) -> str:
    return ChatTemplate(source, TOKENS).render(messages, True, variables)


def test_the_templates_that_people_have() -> None:
    assert render(LLAMA3, SYSTEM, HI) == (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi <b> & é<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert render(CHATML, BYE) == "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    assert render(MISTRAL, HI, HELLO, BYE) == (
        "<s>[INST] Hi <b> & é  [/INST]Hello</s>[INST] Bye [/INST]"
    )
    assert render(GEMMA, BYE, HELLO) == (
        "<s><start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n"
        "<start_of_turn>model\n"
    )


def test_tools() -> None:
    tools = [{"name": "f", "description": "é <b>"}]
    assert render(QWEN, SYSTEM, BYE, tools=tools) == (
        '<|im_start|>system\nBe kind.\n\n<tools>\n{"name": "f", "description": "é <b>"}\n'
        "</tools><|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
    )


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% for m in messages[::-1] %}{{ m.role }}{% break %}{% endfor %}", "user"),
        ("{% generation %}{{ 'a' }}{% endgeneration %}", "a"),
        ("{{ messages | tojson(indent=1) | length }}{{ strftime_now('%Y') | length }}", "544"),
        ("{{ messages | map(attribute='role') | join(' ') }}", "user"),
        ("{{ '%s-%03d' | format('x', 7) }}{{ 'y{}'.format(4) }}{{ 'ab' * 2 }}{{ 2 ** 8 }}", None),
        ("{% set ns = namespace(n=0) %}{% for i in range(9) %}{% set ns.n = ns.n + i %}"
         "{% endfor %}{{ ns.n }}", "36"),
        ("{% macro f(x, y='d') %}[{{ x ~ y }}]{% endmacro %}{{ f('a') }}", "[ad]"),
        ("{% if tools is none and not documents %}none{% endif %}", "none"),
    ],
)  # fmt: skip
def test_what_templates_use(source: str, expected: str | None) -> None:
    assert render(source, HI) == (expected or "x-007y4abab256")


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) if j < 0 %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'a' * 10**10 }}",
        "{{ 10 ** 10 ** 3 ** 9 }}{{ (10 ** 10) ** (10 ** 10) }}",
        "{{ [0] * 10**9 }}",
        "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}"
        "{% endfor %}",
        "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = [n.x, n.x] %}"
        "{% endfor %}{{ n.x }}",
        "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = [n.x, n.x] %}"
        "{% endfor %}{{ '%s' % n.x }}",
        "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = [n.x, n.x] %}"
        "{% endfor %}{{ '{}'.format(n.x) }}",
        "{{ 'a' | center(10**9) }}",
        "{{ 'a'.ljust(10**9) }}",
        "{% set a = 'a' * 10**6 %}{{ a | replace('a', a) }}",
        "{% set a = 'a' * 10**6 %}{{ a.replace('', a) }}",
        "{% set a = 'a' * 10**6 %}{{ a.join(range(9999) | map('string') | list) }}",
        "{% set a = 'a' * 10**6 %}{{ range(9999) | join(a) }}",
        "{% set a = 'a' * 10**6 %}{% for i in range(9999) %}{{ a }}{% endfor %}",
        "{% set a = 'a' * 10**6 %}{% for i in range(9999) %}{% set b = a[1:] %}{% endfor %}",
        "{% for i in range(99999) %}" + "x" * 9999 + "{% endfor %}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (10**9, 1) }}",
        "{{ '{:>1000000000}'.format(1) }}",
        "{{ '{:{}}'.format('x', 10**9) }}",
        "{{ range(9999) | batch(10**9, 'x') | list }}",
        "{{ messages | tojson(indent=10**9) }}",
        "{{ ('x\n' * 99999) | indent(99999) }}",
        "{{ '\t'.expandtabs(10**9) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ ''['__class__'] }}",
        "{{ '' | attr('__class__') }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ messages.append(1) }}",
        "{% include 'x' %}",
        "{{ undefined_function() }}",
        "{{ 1 / 0 }}",
    ],
)
def test_hostile_templates_are_stopped(source: str) -> None:
    start = time.thread_time()
    with pytest.raises(ModelFileError, match=r"tokenizer\.chat_template"):
        render(source, HI)
    assert time.thread_time() - start < 3


def load(path: Path, template: str | None) -> Tokenizer:
    return tokenizer_from_gguf(write(path / "vocab.gguf", bpe_keys(), template=template))


def test_a_broken_template_does_not_stop_loading(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, "a\n{% for %}")
    assert tokenizer.encode("he") == [256]
    with pytest.raises(ModelFileError, match=r"tokenizer\.chat_template': line 2"):
        tokenizer.apply_chat_template([HI])


def test_refusals_are_the_callers(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"no chat template.*raw prompts"):
        load(tmp_path, None).apply_chat_template([HI])
    tokenizer = load(tmp_path, MISTRAL)
    with pytest.raises(RequestError, match="Roles must alternate"):
        tokenizer.apply_chat_template([HI, BYE])
    for messages in ("hi", 3, [3], [{}], [{"role": 1}]):
        with pytest.raises(RequestError, match=r"^messages"):
            tokenizer.apply_chat_template(messages)


def test_encode_chat_has_one_bos(tmp_path: Path) -> None:
    for template in ("{{ bos_token }}{{ messages[0].content }}", "{{ messages[0].content }}"):
        path = write(tmp_path / "vocab.gguf", spm_keys(), template=template)
        ids = tokenizer_from_gguf(path).encode_chat([{"role": "user", "content": "ab"}])
        assert ids.count(1) == 1
        assert ids[0] == 1


GEMMA_TURNS = (
    "<bos><start_of_turn>user\nBe kind.\n\nHi <b> & é<end_of_turn>\n"
    "<start_of_turn>model\nHello<end_of_turn>\n<start_of_turn>user\nBye<end_of_turn>\n"
    "<start_of_turn>model\n"
)


@pytest.mark.parametrize("arch", ["gemma2", "gemma3"])
def test_gemmas_own(arch: str) -> None:
    _, source = KNOWN_TEMPLATES[arch]
    template = ChatTemplate(source, {"bos_token": "<bos>"})
    assert template.render([SYSTEM, HI, HELLO, BYE], True, {}) == GEMMA_TURNS
    assert template.render([HI], False, {}) == (
        "<bos><start_of_turn>user\nHi <b> & é<end_of_turn>\n"
    )
    with pytest.raises(RequestError, match="must alternate"):
        template.render([HI, BYE], True, {})


@pytest.mark.parametrize("has_tokens", [False, True])
def test_a_known_template_where_the_file_has_none(tmp_path: Path, has_tokens: bool) -> None:
    """And its tokens are there."""
    keys = spm_keys()
    if has_tokens:
        keys["tokens"][-1] = "<start_of_turn>"
    tokenizer = tokenizer_from_gguf(write(tmp_path / "vocab.gguf", keys, arch="gemma3"))
    assert tokenizer.template_of == ("gemma3" if has_tokens else None)
    assert (tokenizer.chat_template is not None) == has_tokens
