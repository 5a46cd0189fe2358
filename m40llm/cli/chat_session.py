"""A conversation: its messages, its sampling parameters, and how an answer is made and stopped."""

import contextlib
import dataclasses
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from m40llm.errors import M40LLMError, RequestError

if TYPE_CHECKING:
    from m40llm.engine.sampling_params import SamplingParams
    from m40llm.llm import LLM, Completion

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}
ROLES = ("system", "user", "assistant")


@dataclasses.dataclass
class Session:
    """One conversation with one model; what the commands of `m40llm chat` act on."""

    llm: "LLM"
    model: str
    params: "SamplingParams"
    messages: list[Message] = dataclasses.field(default_factory=list)
    turns: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    lora: str | None = None
    n_context: int = 0  # tokens of the last prompt and its answer

    @property
    def system(self) -> str | None:
        """The system message, if there is one; it is the first message."""
        first = self.messages[:1]
        return first[0]["content"] if first and first[0]["role"] == "system" else None

    def set_system(self, text: str) -> None:
        """Replace the system message; an empty text removes it."""
        kept = self.messages[1:] if self.system is not None else self.messages
        self.messages = [*([{"role": "system", "content": text}] if text else []), *kept]

    def reset(self) -> None:
        """Forget the conversation, not the system message."""
        self.messages = self.messages[:1] if self.system is not None else []
        self.n_context = 0

    def undo(self) -> str | None:
        """Take back the last message of the user and what follows it; returns its text."""
        for at in range(len(self.messages) - 1, -1, -1):
            if self.messages[at]["role"] == "user":
                text = self.messages[at]["content"]
                del self.messages[at:]
                return text
        return None

    def answer(self, text: str, write: Callable[[str], None]) -> "Completion":
        """Say `text` to the model, `write` its answer as it comes, and keep both.

        Ctrl-C ends the answer at the next token (a second one at once): what was said so far is
        kept, with stop_reason "cancelled". Where it fails, the conversation is as it was before.

        Raises:
            M40LLMError: what `LLM.chat` raises, such as a conversation beyond the context.
        """
        self.messages.append({"role": "user", "content": text})
        try:
            completion = self._stream(write)
        except M40LLMError:
            self.messages.pop()
            raise
        self.messages.append({"role": "assistant", "content": completion.text})
        self.n_context = len(completion.prompt_ids) + len(completion.ids)
        timings = dataclasses.asdict(completion.timings)
        self.turns.append({"stop_reason": completion.stop_reason, "timings": timings})
        return completion

    def _stream(self, write: Callable[[str], None]) -> "Completion":
        with stop_on_interrupt() as stopped:
            stream = self.llm.chat(self.messages, self.params, stream=True, lora=self.lora)
            # The second Ctrl-C arrives as an exception, and means the same.
            with contextlib.suppress(KeyboardInterrupt), contextlib.closing(stream):
                for item in stream:
                    write(item.text)
                    if stopped.is_set():
                        break
            return stream.completion


@contextlib.contextmanager
def stop_on_interrupt() -> Iterator[threading.Event]:
    """Within, the first Ctrl-C sets the event yielded, the second raises KeyboardInterrupt.

    An exception in the midst of a forward could leave the KV cache between two states.
    """
    stopped = threading.Event()

    def on_interrupt(signum: int, frame: FrameType | None) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    if threading.current_thread() is not threading.main_thread():
        yield stopped  # signals belong to the main thread
        return
    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


def check_messages(messages: object) -> list[Message]:
    """The messages of a saved conversation, checked.

    Raises:
        RequestError: it is not a list of {"role": ..., "content": ...}.
    """
    if not isinstance(messages, list):
        raise RequestError("messages: expected a list")
    for at, message in enumerate(messages):
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise RequestError(f"messages[{at}]: expected the keys role and content")
        if message["role"] not in ROLES or not isinstance(message["content"], str):
            raise RequestError(f"messages[{at}]: expected a role of {', '.join(ROLES)} and a text")
        if message["role"] == "system" and at:
            raise RequestError(f"messages[{at}]: a system message can only be the first")
    return messages
