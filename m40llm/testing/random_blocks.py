"""Weights in any GGML type: what fuzzing draws, under the name that tests know."""

from m40llm.fuzz.blocks import WRITABLE, random_tensor

__all__ = ["WRITABLE", "random_tensor"]
