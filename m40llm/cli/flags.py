"""The flag of each Python argument, for errors that name one."""

from typing import Final

_AS_NAMED: Final = (
    *("top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "presence_penalty"),
    *("frequency_penalty", "seed", "max_tokens", "stop", "json_schema", "regex", "lark"),
    *("device", "max_seq_len", "kv_type", "cublas", "decode", "require_sm52", "gpu_layers", "fit"),
    *("speculate", "speculate_tokens", "lora", "lora_scale"),
    *("host", "port", "slots", "max_waiting", "chunk", "max_prompt", "api_key_file"),
    *("max_connections", "ray", "replicas", "max_replicas"),
)
FLAGS: Final = {name: f"--{name.replace('_', '-')}" for name in _AS_NAMED} | {
    "temperature": "--temp",
    "scale": "--lora-scale",
    "names": "--name",
    "max_body_bytes": "--max-body",
    "time_limit_s": "--time-limit",
    "send_timeout_s": "--send-timeout",
    "head_timeout_s": "--head-timeout",
    "body_timeout_s": "--body-timeout",
    "grace_s": "--grace",
}


def with_flag(message: str) -> str:
    """An error's text with the flag in place of the Python argument that it begins with."""
    name, colon, rest = message.partition(":")
    return f"{FLAGS.get(name, name)}{colon}{rest}"
