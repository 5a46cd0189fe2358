"""TextStream: the tokens of one request turned into text while they come."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from m40llm.engine.constraint import Constraint
from m40llm.engine.engine import Engine
from m40llm.engine.sampling_params import SamplingParams
from m40llm.engine.step import Clock, Step, StopReason
from m40llm.errors import RequestError
from m40llm.llm.adapters import use
from m40llm.llm.breakers import with_breaker_ids
from m40llm.llm.constraint import Constraints
from m40llm.llm.results import Completion, StreamItem, Timings, TokenLogprob
from m40llm.model.lora import Adapter
from m40llm.progress import Progress
from m40llm.text import StreamDecoder, Tokenizer


class StopStrings:
    """Finds stop strings in text that comes in pieces, also where one straddles pieces."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._held = ""  # the end of the text so far that could still begin a stop string

    def push(self, piece: str) -> tuple[str, bool]:
        """(text that is certain now, whether a stop string was found behind it)."""
        text = self._held + piece
        found = [at for at in map(text.find, self._stop) if at >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        n_held = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held], False

    def flush(self) -> str:
        """What was held back, once no more text comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for n in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0


class Answer:
    """One answer as it grows: its tokens, their text, and why it ended.

    reason  None while it goes on
    """

    def __init__(
        self,
        decoder: StreamDecoder,
        is_special: Callable[[int], bool],
        prompt_ids: list[int],
        params: SamplingParams,
        load_s: float,
        clock: Clock | None = None,
    ) -> None:
        self._prompt_ids, self._params, self._load_s = prompt_ids, params, load_s
        self._decoder, self._is_special = decoder, is_special
        self._stops = StopStrings(params.stop)
        self._texts: list[str] = []
        self._tokens: list[TokenLogprob] = []
        self.clock = Clock() if clock is None else clock
        self.reason: StopReason | None = None
        self.is_cancelled = False  # it ends with the next token

    def add(self, step: Step) -> StreamItem:
        """Books one token; sets `reason` where it is the last."""
        token = step.token
        self._tokens.append(token)
        is_stop_token = step.stop_reason == "stop"
        piece = "" if is_stop_token else self._decoder.push(token.token_id)
        text, found = self._stops.push(piece)
        if not is_stop_token and self._is_special(token.token_id):
            text += self._stops.flush()  # whoever reads its id has all that stands before it
        self.reason = "stop" if found else step.stop_reason
        if self.is_cancelled and not self.reason:
            self.reason = "cancelled"
        if self.reason and not found:
            text += self._rest()
        self._texts.append(text)
        return StreamItem(token.token_id, text, token.logprob, token.top)

    def end(self) -> None:
        """No more tokens come: where none was the last, it ends as "cancelled"."""
        if self.reason is None:
            self.reason = "cancelled"
            self._texts.append(self._rest())

    def _rest(self) -> str:
        """What was held back: no stop string comes of it any more."""
        text, found = self._stops.push(self._decoder.flush())
        return text if found else text + self._stops.flush()

    @property
    def completion(self) -> Completion:
        """The whole. RequestError while it still grows."""
        if self.reason is None:
            raise RequestError("completion: the stream has not ended; iterate to its end or close")
        return Completion(
            text="".join(self._texts),
            ids=[token.token_id for token in self._tokens],
            prompt_ids=self._prompt_ids,
            stop_reason=self.reason,
            logprobs=self._tokens if self._params.logprobs is not None else None,
            timings=self._timings(),
        )

    def _timings(self) -> Timings:
        clock, n_decoded = self.clock, len(self._tokens) - 1  # the first came from the prefill
        return Timings(
            prompt_tokens=len(self._prompt_ids),
            generated_tokens=len(self._tokens),
            load_s=self._load_s,
            prefill_s=clock.prefill_s,
            decode_s=clock.decode_s,
            ttft_s=clock.ttft_s,
            tokens_per_s=n_decoded / clock.decode_s if n_decoded > 0 else 0.0,
            proposed_tokens=clock.n_proposed,
            accepted_tokens=clock.n_accepted,
            cached_tokens=clock.n_cached,
            queue_s=clock.queue_s,
        )


class TextStream:
    """Iterate over it for one StreamItem a token; afterwards `completion` holds the whole.

    `cancel()` (from any thread) ends it after the token in hand; `close()`, or leaving a `with`
    block, ends it at once. Either way what was made so far is the completion, with the text that
    could have become a stop string.
    """

    def __init__(
        self,
        steps: Callable[[Clock], Iterator[Step]],
        answer: Answer,
        turn: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._answer = answer
        self._items = self._run(steps, turn)

    def __iter__(self) -> Iterator[StreamItem]:
        return self

    def __next__(self) -> StreamItem:
        return next(self._items)

    def __enter__(self) -> "TextStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def cancel(self) -> None:
        """End the stream after the token in hand, with stop_reason "cancelled"."""
        self._answer.is_cancelled = True

    def close(self) -> None:
        """End the stream now; does nothing where it has ended."""
        self._items.close()
        self._answer.end()

    @property
    def completion(self) -> Completion:
        """The whole answer. RequestError while the stream is still running."""
        return self._answer.completion

    def _run(
        self,
        steps: Callable[[Clock], Iterator[Step]],
        turn: Callable[[], AbstractContextManager[None]],
    ) -> Generator[StreamItem, None, None]:
        with turn():
            for step in steps(self._answer.clock):
                yield self._answer.add(step)
                if self._answer.reason:
                    return


@dataclass(frozen=True)
class Checked:
    """A request that is known to be good, for this model."""

    prompt_ids: list[int]
    params: SamplingParams
    constraint: Constraint | None

    def answer(self, tokenizer: Tokenizer, load_s: float) -> Answer:
        """A new one, of which nothing has come."""
        continuing = not tokenizer.is_special(self.prompt_ids[-1])
        decoder = tokenizer.stream_decoder(continuing=continuing)
        return Answer(decoder, tokenizer.is_special, self.prompt_ids, self.params, load_s)


def checked(
    engine: Engine,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[int],
    params: Any,
    constraints: Constraints,
) -> Checked:
    """RequestError for what cannot be done."""
    params = SamplingParams() if params is None else params
    if not isinstance(params, SamplingParams):
        raise RequestError(f"params: expected SamplingParams, got {type(params).__name__}")
    ids = engine.check_ids(prompt_ids)
    params = with_breaker_ids(params, tokenizer)
    engine.check_params(params)
    return Checked(ids, params, constraints.of(params))


def open_stream(
    engine: Engine,
    tokenizer: Tokenizer,
    request: Checked,
    adapter: Adapter | None,
    turn: Callable[[], AbstractContextManager[None]],
    load_s: float,
    *,
    reuse_prefix: bool,
    progress: Progress | None,
) -> TextStream:
    """It begins when it is first asked for a token."""

    def steps(clock: Clock) -> Iterator[Step]:
        use(engine, adapter)
        return engine.generate(
            request.prompt_ids,
            request.params,
            clock,
            reuse_prefix=reuse_prefix,
            constraint=request.constraint,
            progress=progress,
        )

    return TextStream(steps, request.answer(tokenizer, load_s), turn)
