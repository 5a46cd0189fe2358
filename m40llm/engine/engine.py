"""The engine: token ids in, token ids out. It knows no text; stop strings are matched in llm.py."""

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from operator import index
from typing import Final

import numpy as np
from numpy.typing import NDArray

from m40llm.device.decoder import Form
from m40llm.device.ops import Buffer
from m40llm.engine.decode_step import DecodeForm, decode, slot_request, why_host
from m40llm.engine.sampling import Chain
from m40llm.engine.sampling_params import SamplingParams
from m40llm.engine.step import Clock, Step, StopReason, TokenLogprob, logprob_of
from m40llm.errors import ModelFileError, RequestError
from m40llm.model.batch import Batch
from m40llm.model.transformer import Transformer
from m40llm.progress import Progress

_REASONS: Final[dict[str, StopReason]] = {"stop": "stop", "length": "length", "context": "context"}


class Engine:
    """Runs requests on a model, one at a time, in the cache's sequence 0."""

    def __init__(
        self,
        model: Transformer,
        stop_ids: frozenset[int] = frozenset(),
        decode_form: DecodeForm = "host",
    ) -> None:
        self.model = model
        self.stop_ids = stop_ids
        self.decode_form = decode_form
        self._cached_ids: list[int] = []  # what the cache holds of sequence 0
        self._has_failed = False  # the forward before: the device must recover first

    def check_form(self) -> None:
        """RequestError where the device cannot decode in the form that was asked for."""
        if self.decode_form != "host" and isinstance(self.model.decoder, str):
            raise RequestError(
                f"decode: expected 'host' on device {self.model.ops.name!r}, "
                f"got {self.decode_form!r}: {self.model.decoder}"
            )

    @property
    def max_seq_len(self) -> int:
        return self.model.kv.max_seq_len

    def forget(self) -> None:
        """Nothing is cached any more."""
        self._cached_ids = []
        self.model.kv.truncate(0, 0)

    def check_ids(self, ids: Sequence[int], name: str = "prompt") -> list[int]:
        """The ids as a list of ints. RequestError for none, too many, or one out of range."""
        wanted = f"{name}: expected a text or token ids, got {ids!r}"
        if isinstance(ids, bytes | bytearray):  # a sequence of ints, but not of ids
            raise RequestError(wanted)
        try:
            checked = [index(token_id) for token_id in ids]
        except TypeError:
            raise RequestError(wanted) from None
        if not checked:
            raise RequestError(f"{name}: empty; a model needs at least one token to go on from")
        if len(checked) > self.max_seq_len:
            raise RequestError(
                f"{name}: {len(checked)} tokens; the context holds {self.max_seq_len}, "
                "a larger max_seq_len (--max-seq-len) holds more"
            )
        vocab_size = self.model.hp.vocab_size
        for token_id in (min(checked), max(checked)):
            if not 0 <= token_id < vocab_size:
                raise RequestError(f"{name}: token id {token_id}: expected 0 to {vocab_size - 1}")
        return checked

    def logits(
        self, ids: Sequence[int], progress: Progress | None = None
    ) -> Iterator[NDArray[np.float32]]:
        """Logits of every position, in pieces float32[n, vocab_size] that follow one another."""
        return self._every_row(ids, self._forward, "all", self.model.workspace.max_logits, progress)

    def hidden(
        self, ids: Sequence[int], progress: Progress | None = None
    ) -> Iterator[NDArray[np.float32]]:
        """The last hidden state of every position, normed: pieces float32[n, n_embd], in order."""
        run = partial(self._run, self.model.hidden)
        return self._every_row(ids, run, "none", self.model.workspace.max_tokens, progress)

    def _every_row(
        self,
        ids: Sequence[int],
        run: Callable[[Batch], Buffer],
        logits: str,
        step: int,
        progress: Progress | None,
    ) -> Iterator[NDArray[np.float32]]:
        """What `run` makes of every position, `step` of them at a time."""
        checked = self.check_ids(ids, "ids")
        self._cached_ids = []
        for first in range(0, len(checked), step):
            piece = checked[first : first + step]
            batch = Batch.of((0, first, piece), logits=logits)
            with self._noting_failure():
                rows = self.model.ops.read(run(batch))
            yield rows
            if progress:
                progress("reading", (first + len(piece)) / len(checked))

    def prefill(
        self, prompt_ids: list[int], n_cached: int, progress: Progress | None = None
    ) -> NDArray[np.float32]:
        """Logits float32[vocab_size] after the prompt, whose first n_cached tokens are cached."""
        step = self.model.workspace.max_tokens
        self._cached_ids = prompt_ids[:n_cached]
        for first in range(n_cached, len(prompt_ids), step):
            piece = prompt_ids[first : first + step]
            logits = self._forward(Batch.of((0, first, piece)))
            self._cached_ids = prompt_ids[: first + len(piece)]
            if progress:
                progress("reading the prompt", (first + len(piece)) / len(prompt_ids))
        return self._read_logits(logits)

    def generate(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        clock: Clock | None = None,
        *,
        reuse_prefix: bool = False,
        progress: Progress | None = None,
    ) -> Iterator[Step]:
        """One step a token, until a stop token, max_tokens or the context's end.

        A stop token is the last step, if it is one of the model's or of params.stop_ids. With
        `reuse_prefix` the tokens that the prompt shares with what is cached are not computed
        again; results may then differ in the last bits, since decode and prefill round apart.
        """
        prompt = self.check_ids(prompt_ids)
        self.check_params(params)
        clock = clock if clock is not None else Clock()
        seed = params.seed if params.seed is not None else secrets.randbits(63)
        begin = time.perf_counter()
        logits = self.prefill(prompt, self._n_shared(prompt) if reuse_prefix else 0, progress)
        clock.prefill_s = time.perf_counter() - begin
        ids: list[int] = []
        chain = Chain(params, prompt, seed)
        while True:
            token = logprob_of(logits, params, chain.choose(logits, ids))
            ids.append(token.token_id)
            now = time.perf_counter() - begin
            clock.ttft_s = clock.ttft_s or now
            clock.decode_s = now - clock.prefill_s
            reason = self._stop_reason(params, prompt, ids)
            yield Step(token, reason)
            if reason:
                return
            if form := self._device_form(params):
                yield from self._decode_on_device(form, params, prompt, ids, seed, clock)
                return
            logits = self._decode(token.token_id, len(prompt) + len(ids) - 1)

    def _device_form(self, params: SamplingParams) -> Form | None:
        """In which form the device decodes this request by itself; None where the host must."""
        if self.decode_form == "host":
            return None
        decoder = self.model.decoder
        if isinstance(decoder, str) or why_host(params, self._all_stop_ids(params), decoder):
            return None
        return self.decode_form

    def _all_stop_ids(self, params: SamplingParams) -> list[int]:
        own = set() if params.ignore_eos else self.stop_ids
        return sorted(own | set(params.stop_ids))

    def _decode_on_device(
        self,
        form: Form,
        params: SamplingParams,
        prompt: list[int],
        ids: list[int],
        seed: int,
        clock: Clock,
    ) -> Iterator[Step]:
        """The rest of an answer whose first token the host has chosen."""
        decoder, hp = self.model.decoder, self.model.hp
        assert not isinstance(decoder, str)
        stop_ids = self._all_stop_ids(params)
        request = slot_request(params, prompt, ids, stop_ids, seed, hp.vocab_size)
        begin = time.perf_counter() - clock.decode_s
        with self._noting_failure():
            for answer in decode(decoder, form, request):
                self._cached_ids[len(prompt) + len(ids) - 1 :] = [ids[-1]]
                self.model.kv.seq_lens[0] = len(self._cached_ids)
                ids.append(answer.token_id)
                clock.decode_s = time.perf_counter() - begin
                token = TokenLogprob(answer.token_id, answer.logprob)
                yield Step(token, None if answer.done is None else _REASONS[answer.done])

    def _n_shared(self, prompt: list[int]) -> int:
        """Leading tokens that are cached already; the last one must be computed for its logits."""
        n_shared = 0
        for cached, wanted in zip(self._cached_ids, prompt[:-1], strict=False):
            if cached != wanted:
                break
            n_shared += 1
        return n_shared

    def _decode(self, token_id: int, pos: int) -> NDArray[np.float32]:
        logits = self._forward(Batch.of((0, pos, [token_id])))
        self._cached_ids[pos:] = [token_id]
        return self._read_logits(logits)

    def _forward(self, batch: Batch) -> Buffer:
        return self._run(self.model.forward, batch)

    def _run(self, forward: Callable[[Batch], Buffer], batch: Batch) -> Buffer:
        with self._noting_failure():
            if self._has_failed:
                self.model.recover()
                self._has_failed = False
            return forward(batch)

    @contextmanager
    def _noting_failure(self) -> Iterator[None]:
        """A forward that fails, or is interrupted, leaves a cache that is not to be trusted."""
        try:
            yield
        except BaseException:
            self._cached_ids, self._has_failed = [], True
            raise

    def _read_logits(self, logits: Buffer) -> NDArray[np.float32]:
        with self._noting_failure():  # a card tells only now what went wrong in the launches
            row: NDArray[np.float32] = self.model.ops.read(logits)[0]
        if not np.isfinite(row).all():
            raise ModelFileError(
                "the model's logits are not finite numbers: its weights are damaged or overflow"
            )
        return row

    def _stop_reason(
        self, params: SamplingParams, prompt: list[int], ids: list[int]
    ) -> StopReason | None:
        is_model_end = ids[-1] in self.stop_ids and not params.ignore_eos
        if is_model_end or ids[-1] in params.stop_ids:
            return "stop"
        if params.max_tokens is not None and len(ids) >= params.max_tokens:
            return "length"
        if len(prompt) + len(ids) > self.max_seq_len:  # the last token cannot be fed back
            return "context"
        return None

    def check_params(self, params: SamplingParams) -> None:
        """RequestError for a token id, or a count of them, beyond the vocabulary."""
        vocab_size = self.model.hp.vocab_size
        for name, ids in (("stop_ids", params.stop_ids), ("logit_bias", params.logit_bias)):
            for token_id in ids:
                if token_id >= vocab_size:
                    raise RequestError(
                        f"{name}: token id {token_id}: expected 0 to {vocab_size - 1}"
                    )
        if params.logprobs is not None and params.logprobs > vocab_size:
            raise RequestError(f"logprobs: expected at most {vocab_size}, got {params.logprobs}")
        if params.dry_multiplier and any(isinstance(token, str) for token in params.dry_breakers):
            raise RequestError("dry_breakers: the engine takes token ids; LLM finds those of texts")
