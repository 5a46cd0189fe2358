"""Help for tests, ours and other people's: tiny models, and broken files made of pieces."""

from m40llm.testing.craft import (
    array_field,
    build_gguf_bytes,
    field,
    gguf_string,
    tensor_info,
)
from m40llm.testing.tiny import write_tiny_gguf

__all__ = [
    "array_field",
    "build_gguf_bytes",
    "field",
    "gguf_string",
    "tensor_info",
    "write_tiny_gguf",
]
