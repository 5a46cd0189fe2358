"""Said: one answer of a chat as it comes, as OpenAI's deltas and as a message."""

from typing import Any

from m40llm.llm.results import Completion, StreamItem
from m40llm.llm.tools import CallArguments, CallBegin, Text, ToolEvent, ToolParser
from m40llm.server.asking import FINISH
from m40llm.server.logprobs import of_chat
from m40llm.text import Tokenizer

Delta = tuple[dict[str, Any], dict[str, Any]]  # and what its choice says beside it


class Said:
    """`push` what comes, `finish` with the whole."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        parser: ToolParser | None,
        ends: frozenset[int],
        has_logprobs: bool,
    ) -> None:
        self._tokenizer, self._parser, self._ends = tokenizer, parser, ends
        self._has_logprobs = has_logprobs
        self._texts: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self._calls: list[dict[str, Any]] = []
        self.finish_reason = "stop"

    def push(self, item: StreamItem) -> list[Delta]:
        """What one token adds."""
        if self._parser is None:
            events: list[ToolEvent] = [Text(item.text)] if item.text else []
        else:
            events = self._parser.push(item.text, item.token_id)
        deltas: list[Delta] = [(self._delta(event), {}) for event in events]
        is_end = item.token_id in self._ends and not item.text
        if not self._has_logprobs or is_end:
            return deltas
        one = of_chat(self._tokenizer, item)
        self._logprobs.append(one)
        if not deltas:
            deltas = [({"content": ""}, {})]
        deltas[0] = deltas[0][0], {"logprobs": {"content": [one], "refusal": None}}
        return deltas

    def finish(self, completion: Completion) -> list[Delta]:
        """What had been held back; sets `finish_reason`."""
        self.finish_reason = FINISH.get(completion.stop_reason, "stop")
        events = [] if self._parser is None else self._parser.finish()
        deltas: list[Delta] = [(self._delta(event), {}) for event in events]
        if self._calls and self.finish_reason == "stop":
            self.finish_reason = "tool_calls"
        return deltas

    def choice(self, index: int) -> dict[str, Any]:
        """As an answer that comes whole has it."""
        text = "".join(self._texts)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if self._calls:
            message |= {"content": text or None, "tool_calls": self._calls}
        logprobs = {"content": self._logprobs, "refusal": None} if self._has_logprobs else None
        return {
            "index": index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": self.finish_reason,
        }

    def _delta(self, event: ToolEvent) -> dict[str, Any]:
        if isinstance(event, Text):
            self._texts.append(event.text)
            return {"content": event.text}
        if isinstance(event, CallBegin):
            function = {"name": event.name, "arguments": ""}
            call = {"id": event.id, "type": "function", "function": function}
            self._calls.append({**call, "function": dict(function)})
            return {"tool_calls": [{"index": event.index, **call}]}
        assert isinstance(event, CallArguments)
        self._calls[event.index]["function"]["arguments"] += event.text
        return {"tool_calls": [{"index": event.index, "function": {"arguments": event.text}}]}
