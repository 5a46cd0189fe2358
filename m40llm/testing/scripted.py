"""A service that says what it is told to say: for tests of what seldom happens to a real one."""

import threading
import time
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from m40llm.engine.sampling_params import SamplingParams
from m40llm.errors import BusyError, DeadlineError, M40LLMError
from m40llm.llm.results import Completion, StreamItem, Timings, TokenLogprob
from m40llm.llm.stream import StopStrings
from m40llm.text import tokenizer_from_gguf

N_EMBD = 8


@dataclass
class Script:
    """What happens; a test changes it at any time.

    text         what every answer says, again and again
    n_tokens     of an answer at most, which then ends with the model's stop token
    token_s      how long each token takes
    go           tokens come while it is set
    error        told in place of the token after the first `error_after`
    busy         raised by `submit`
    """

    text: str = " the quick brown fox"
    n_tokens: int = 12
    token_s: float = 0.0
    go: threading.Event = field(default_factory=threading.Event)
    error: M40LLMError | None = None
    error_after: int = 2
    busy: BusyError | None = None
    failure: str = ""

    def __post_init__(self) -> None:
        self.go.set()


@dataclass
class Ticket:
    """Of one request."""

    is_cancelled: bool = False
    is_ended: bool = False

    def cancel(self) -> None:
        self.is_cancelled = True


class ScriptedService:
    """As `m40llm.llm.service.Service`, with a thread for each request. `asked` has what came."""

    most_requests = 200

    def __init__(self, path: Path, n_slots: int = 4) -> None:
        tokenizer = tokenizer_from_gguf(path)
        self.llm: Any = types.SimpleNamespace(
            tokenizer=tokenizer,
            hparams=types.SimpleNamespace(n_embd=N_EMBD, vocab_size=tokenizer.vocab_size),
            max_seq_len=64,
            path=path,
            device_name="cpu",
            device_reason="asked for",
            plan=types.SimpleNamespace(shares=[]),
        )
        self.script = Script()
        self.asked: list[dict[str, Any]] = []
        self.tickets: list[Ticket] = []
        self._n_slots, self._is_closed = n_slots, False

    def submit(
        self,
        prompt: Sequence[int],
        params: SamplingParams | None = None,
        *,
        listen: Callable[[Any], None],
        **how: Any,
    ) -> Ticket:
        if self._is_closed:
            raise BusyError("the service is closing")
        if self.script.busy is not None:
            raise self.script.busy
        self.asked.append({"prompt": list(prompt), "params": params, **how})
        return self._start(self._answer, list(prompt), params or SamplingParams(), listen, how)

    def embed(
        self, prompts: Sequence[Sequence[int]], pooling: str, *, listen: Any, **how: Any
    ) -> Ticket:
        """Vectors of 0, 1, 2, ...; the first number is the text's length."""
        self.asked.append({"prompts": prompts, "pooling": pooling, **how})
        rows = np.tile(np.arange(N_EMBD, dtype=np.float32), (len(prompts), 1))
        rows[:, 0] = [len(prompt) for prompt in prompts]
        ticket = Ticket()
        listen(self.script.error or rows)
        ticket.is_ended = True
        return ticket

    def stats(self) -> Any:
        n_open = sum(not ticket.is_ended for ticket in self.tickets)
        n_running = min(n_open, self._n_slots)
        return types.SimpleNamespace(
            n_slots=self._n_slots,
            n_running=n_running,
            n_waiting=n_open - n_running,
            kv_tokens=10 * n_running,
            kv_capacity=64 * self._n_slots,
            failure=self.script.failure,
        )

    def close(self, grace_s: float = 0.0) -> None:
        self._is_closed = True
        end_s = time.monotonic() + grace_s
        while time.monotonic() < end_s and not all(ticket.is_ended for ticket in self.tickets):
            time.sleep(0.01)
        for ticket in self.tickets:
            ticket.cancel()
        while not all(ticket.is_ended for ticket in self.tickets):
            time.sleep(0.01)

    def __enter__(self) -> "ScriptedService":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, work: Callable[..., None], *args: Any) -> Ticket:
        ticket = Ticket()
        self.tickets.append(ticket)
        threading.Thread(target=work, args=(ticket, *args), daemon=True).start()
        return ticket

    def _answer(
        self,
        ticket: Ticket,
        prompt: list[int],
        params: SamplingParams,
        listen: Callable[[Any], None],
        how: dict[str, Any],
    ) -> None:
        begin_s = time.monotonic()
        deadline_s = how.get("deadline_s")
        growing = _Growing(self.llm.tokenizer, prompt, params, self.script)
        while growing.reason is None:
            while not self.script.go.is_set() and not ticket.is_cancelled:
                if deadline_s is not None and time.monotonic() - begin_s > deadline_s:
                    break
                time.sleep(0.005)
            time.sleep(self.script.token_s)
            if ticket.is_cancelled:
                growing.end()
                break
            error = self.script.error if growing.n_tokens >= self.script.error_after else None
            if deadline_s is not None and time.monotonic() - begin_s > deadline_s:
                growing.end()
                told = f"the request's {deadline_s:.1f} s have passed"
                error = DeadlineError(told, growing.completion())
            if error is not None:
                ticket.is_ended = True
                listen(error)
                return
            listen(growing.next())
        ticket.is_ended = True
        listen(growing.completion())


class _Growing:
    """An answer of the script's text, again and again, one token at a time."""

    def __init__(
        self, tokenizer: Any, prompt: list[int], params: SamplingParams, script: Script
    ) -> None:
        self._tokenizer, self._prompt, self._params = tokenizer, prompt, params
        self._ids = tokenizer.encode_inside(script.text)
        self._n_most = script.n_tokens
        self._decoder = tokenizer.stream_decoder(continuing=True)
        self._stops = StopStrings(params.stop)
        self._texts: list[str] = []
        self._tokens: list[TokenLogprob] = []
        self.reason: Any = None

    @property
    def n_tokens(self) -> int:
        return len(self._tokens)

    def next(self) -> StreamItem:
        is_end = self.n_tokens == self._n_most
        token_id = self._ids[self.n_tokens % len(self._ids)]
        if is_end:
            token_id = min(self._tokenizer.stop_ids)
        top = tuple((token_id + n, -0.5 - n) for n in range(self._params.logprobs or 0))
        token = TokenLogprob(token_id, -0.5, top)
        self._tokens.append(token)
        text, found = self._stops.push("" if is_end else self._decoder.push(token_id))
        if found or is_end:
            self.reason = "stop"
        elif self.n_tokens == self._params.max_tokens:
            self.reason = "length"
        if self.reason and not found:
            text += self._stops.flush()
        self._texts.append(text)
        return StreamItem(token_id, text, token.logprob, top)

    def end(self) -> None:
        self.reason = "cancelled"
        self._texts.append(self._stops.flush())

    def completion(self) -> Completion:
        timings = Timings(
            prompt_tokens=len(self._prompt),
            generated_tokens=self.n_tokens,
            load_s=0.0,
            prefill_s=0.1,
            decode_s=0.1,
            ttft_s=0.1,
            tokens_per_s=10.0,
            cached_tokens=1,
            queue_s=0.01,
        )
        return Completion(
            text="".join(self._texts),
            ids=[token.token_id for token in self._tokens],
            prompt_ids=self._prompt,
            stop_reason=self.reason,
            logprobs=self._tokens if self._params.logprobs is not None else None,
            timings=timings,
        )
