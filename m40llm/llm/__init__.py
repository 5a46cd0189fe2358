"""LLM: a model file as a Python object."""

from m40llm.llm.llm import LLM
from m40llm.llm.results import Completion, StreamItem, Timings, TokenLogprob, ToolCall
from m40llm.llm.stream import TextStream

__all__ = ["LLM", "Completion", "StreamItem", "TextStream", "Timings", "TokenLogprob", "ToolCall"]
