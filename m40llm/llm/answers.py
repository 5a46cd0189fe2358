"""What may be asked of a loaded model: answers, logits, vectors."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, overload

import numpy as np
from numpy.typing import NDArray

from m40llm.engine.engine import Engine
from m40llm.engine.sampling_params import SamplingParams
from m40llm.errors import RequestError
from m40llm.llm.adapters import Adapters, use
from m40llm.llm.arguments import Prompt, ids_of, is_many
from m40llm.llm.constraint import Constraints
from m40llm.llm.embed import Pooling, embeddings
from m40llm.llm.results import Completion
from m40llm.llm.stream import TextStream, checked, open_stream
from m40llm.llm.tools import tool_format
from m40llm.llm.tools.definitions import read_choice
from m40llm.model.hparams import HParams
from m40llm.progress import Progress
from m40llm.text import Tokenizer

Messages = Sequence[Mapping[str, Any]]
Params = SamplingParams | None
Name = str | None  # of an adapter
_LENT: Final = "the model is served: submit requests to its Service"


@dataclass(frozen=True)
class Lent:
    """What a Service makes answers with."""

    engine: Engine
    constraints: Constraints
    adapters: Adapters
    load_s: float


class Answers:
    """The requests of `LLM`, one at a time."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, load_s: float) -> None:
        self._engine: Engine | None = engine
        self._turn = threading.Lock()
        self._turn_of: int | None = None  # the thread whose turn it is
        self._is_lent = False
        self._load_s, self._adapters = load_s, Adapters()
        self.hparams: HParams = engine.model.hp
        self.tokenizer = tokenizer
        self._constraints = Constraints(tokenizer, engine.model.hp.vocab_size)

    @overload
    def generate(  # type: ignore[overload-overlap]  # a str is a sequence of str, too
        self, prompt: Prompt, params: Params = None, *, lora: Name = None
    ) -> Completion: ...
    @overload
    def generate(
        self, prompt: Sequence[Prompt], params: Params = None, *, lora: Name = None
    ) -> list[Completion]: ...
    def generate(self, prompt: Any, params: Params = None, *, lora: Name = None) -> Any:
        """Continues a prompt: a text (encoded as the file says, no chat template) or token ids.

        A list of prompts gives a list of completions, in the same order. `lora` names an adapter.
        """
        if is_many(prompt):
            return [self.generate(one, params, lora=lora) for one in prompt]
        with self.stream(prompt, params, lora=lora) as stream:
            for _ in stream:
                pass
            return stream.completion

    def stream(
        self,
        prompt: Prompt,
        params: Params = None,
        *,
        lora: Name = None,
        progress: Progress | None = None,
    ) -> TextStream:
        """As `generate`, one StreamItem a token as it comes."""
        prompt_ids = ids_of(prompt, self.tokenizer)
        return self._start(prompt_ids, params, lora, reuse_prefix=False, progress=progress)

    @overload
    def chat(
        self,
        messages: Messages,
        params: Params = ...,
        *,
        stream: Literal[False] = ...,
        lora: Name = ...,
        tools: Any = ...,
        tool_choice: Any = ...,
        parallel_tool_calls: bool = ...,
        **variables: Any,
    ) -> Completion: ...
    @overload
    def chat(
        self,
        messages: Messages,
        params: Params = ...,
        *,
        stream: Literal[True],
        lora: Name = ...,
        tools: Any = ...,
        tool_choice: Any = ...,
        parallel_tool_calls: bool = ...,
        **variables: Any,
    ) -> TextStream: ...
    def chat(
        self,
        messages: Messages,
        params: Params = None,
        *,
        stream: bool = False,
        lora: Name = None,
        tools: Any = None,
        tool_choice: Any = None,
        parallel_tool_calls: bool = True,
        **variables: Any,
    ) -> Completion | TextStream:
        """Answers a conversation: [{"role": "user", "content": "..."}, ...].

        The file's chat template makes the prompt; `variables` are what else it reads. What the
        conversation shares with the one before is not computed again. `tools`, `tool_choice` and
        `parallel_tool_calls` as OpenAI's API has them (docs/tools.md); a stream has calls as the
        model writes them.
        """
        has_schema = getattr(params, "json_schema", None) is not None
        if not tools:
            read_choice(tool_choice, ())  # which refuses a choice among none
        else:
            calls = tool_format(self.tokenizer)
            params = calls.constrained(params, tools, tool_choice, parallel_tool_calls)
            variables |= calls.prompt_variables(tools, tool_choice, messages)
            messages = variables.pop("messages")
        prompt_ids = self.tokenizer.encode_chat(messages, **variables)
        answer = self._start(prompt_ids, params, lora, reuse_prefix=True, progress=None)
        if stream:
            return answer
        with answer:
            items = list(answer)
        if not tools:
            return answer.completion
        return calls.parsed(answer.completion, items, tools, tool_choice, at_once=has_schema)

    def logits(self, prompt: Prompt, *, progress: Progress | None = None) -> NDArray[np.float32]:
        """Raw logits after each token of a text, or of ids: float32[n, vocab_size]."""
        engine = self._open_engine()
        with self._take_turn():
            use(engine, None)
            checked = engine.check_ids(ids_of(prompt, self.tokenizer), "ids")
            out = np.empty((len(checked), self.hparams.vocab_size), np.float32)
            at = 0
            for piece in engine.logits(checked, progress):
                out[at : at + len(piece)] = piece
                at += len(piece)
            return out

    def embed(
        self,
        prompt: Prompt | Sequence[Prompt],
        pooling: Pooling = "mean",
        *,
        normalise: bool = True,
        progress: Progress | None = None,
    ) -> NDArray[np.float32]:
        """Texts (or token ids) as vectors: float32[n_embd] of one, float32[n, n_embd] of a list.

        They are the last hidden states behind the final norm, pooled over the tokens: their `mean`,
        or that of the `last` or the first (`cls`) token, which in a causal model has seen no other.
        `normalise` divides each by its length. RequestError for an empty list or text.
        """
        engine, many = self._open_engine(), is_many(prompt)
        prompts: Any = prompt if many else [prompt]
        ids = [ids_of(one, self.tokenizer) for one in prompts]
        with self._take_turn():
            use(engine, None)
            rows = embeddings(engine, ids, pooling, normalise, progress)
        return rows if many else rows[0]

    def _loaded_engine(self) -> Engine:
        """To read facts of, whoever works with it."""
        if self._engine is None:
            raise RequestError("the model was closed")
        return self._engine

    def _open_engine(self) -> Engine:
        engine = self._loaded_engine()
        if self._is_lent:
            raise RequestError(_LENT)
        return engine

    def lend(self) -> Lent:
        """For good, to who runs many requests at a time; those of this object are refused."""
        engine = self._open_engine()
        with self._take_turn():
            self._is_lent = True
        return Lent(engine, self._constraints, self._adapters, self._load_s)

    def _start(
        self, prompt_ids: Sequence[int], params: Params, lora: Name, **how: Any
    ) -> TextStream:
        engine, adapter = self._open_engine(), self._adapters.named(lora)
        request = checked(engine, self.tokenizer, prompt_ids, params, self._constraints)
        return open_stream(
            *(engine, self.tokenizer, request, adapter, self._take_turn, self._load_s), **how
        )

    @contextmanager
    def _take_turn(self) -> Iterator[None]:
        me = threading.get_ident()
        if self._turn_of == me:
            raise RequestError("another stream of this model is open; end or close it first")
        with self._turn:
            if self._is_lent:  # while it waited, or since it was made
                raise RequestError(_LENT)
            self._turn_of = me
            try:
                yield
            finally:
                self._turn_of = None
