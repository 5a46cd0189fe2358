"""The engine: token ids in, token ids out. It knows no text; stop strings are matched in llm.py."""

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
from numpy.typing import NDArray

from m40llm.device.decoder import Form
from m40llm.device.ops import Buffer
from m40llm.engine.checks import check_params, checked_ids
from m40llm.engine.constraint import Constraint
from m40llm.engine.decode_step import (
    DecodeForm,
    decode,
    no_form,
    slot_request,
    step_of,
    why_host,
)
from m40llm.engine.request import Request
from m40llm.engine.sampling_params import SamplingParams
from m40llm.engine.speculate import Proposal, Proposer, choose
from m40llm.engine.step import Clock, Step, check_finite
from m40llm.model.batch import Batch
from m40llm.model.staged import Model
from m40llm.progress import Progress


class Engine:
    """Runs requests on a model, one at a time, in the cache's sequence 0."""

    def __init__(
        self,
        model: Model,
        stop_ids: frozenset[int] = frozenset(),
        decode_form: DecodeForm = "host",
    ) -> None:
        self.model = model
        self.stop_ids = stop_ids
        self.decode_form = decode_form
        self.must_host = False  # the ops have other kernels than a decoder
        self.proposer: Proposer | None = None  # for the host's loop
        self._cached_ids: list[int] = []  # what the cache holds of sequence 0
        self._has_failed = False  # the forward before: the device must recover first

    def check_form(self) -> None:
        """RequestError where the device cannot decode in the form that was asked for."""
        if self.decode_form == "host":
            return
        decoder, device = self.model.decoder, self.model.ops.name
        if isinstance(decoder, str):
            raise no_form(self.decode_form, device, decoder)
        if reason := decoder.why_not(self.decode_form):
            raise no_form(self.decode_form, device, reason, decoder.forms)

    @property
    def max_seq_len(self) -> int:
        return self.model.kv.max_seq_len

    def forget(self) -> None:
        """Nothing is cached any more."""
        self._cached_ids = []
        self.model.kv.truncate(0, 0)

    @property
    def cached_ids(self) -> list[int]:
        """The tokens of sequence 0 that the cache holds."""
        return list(self._cached_ids)

    def adopt(self, ids: list[int]) -> None:
        """The cache holds these, whoever has put them there."""
        self._cached_ids = ids
        self.model.kv.seq_lens[0] = len(ids)

    def check_ids(self, ids: Sequence[int], name: str = "prompt") -> list[int]:
        """The ids as a list of ints. RequestError for none, too many, or one out of range."""
        return checked_ids(ids, name, self.max_seq_len, self.model.hp.vocab_size)

    def check_params(self, params: SamplingParams) -> None:
        """RequestError for a token id, or a count of them, beyond the vocabulary."""
        check_params(params, self.model.hp.vocab_size)

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
        self.model.kv.truncate(0, n_cached)
        for first in range(n_cached, len(prompt_ids), step):
            piece = prompt_ids[first : first + step]
            logits = self._forward(Batch.of((0, first, piece)))
            self._cached_ids = prompt_ids[: first + len(piece)]
            if progress:
                progress("reading the prompt", (first + len(piece)) / len(prompt_ids))
        row: NDArray[np.float32] = self._read_logits(logits)[0]
        return row

    def generate(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        clock: Clock | None = None,
        *,
        reuse_prefix: bool = False,
        constraint: Constraint | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Step]:
        """One step a token, until a stop token, max_tokens or the context's end.

        A stop token is the last step, if it is one of the model's or of params.stop_ids. With
        `reuse_prefix` the tokens that the prompt shares with what is cached are not computed
        again; results may then differ in the last bits, since decode and prefill round apart.
        """
        prompt = self.check_ids(prompt_ids)
        self.check_params(params)
        request = self.request(prompt, params, clock, constraint)
        request.clock.n_cached = self._n_shared(prompt) if reuse_prefix else 0
        rows = self.prefill(prompt, request.clock.n_cached, progress)[None]
        request.clock.prefill_s = time.perf_counter() - request.begin_s
        if self.proposer:
            self.proposer.begin(reuse_prefix=reuse_prefix)
        proposals: list[Proposal] = []
        while True:
            for step in self._chosen(request, rows, proposals):
                yield step
                if step.stop_reason:
                    return
            if not self.model.adapter and (form := self.form_of(request)):
                yield from self._decode_on_device(form, request)
                return
            proposals = self._proposed(request)
            rows = self._decode([request.ids[-1], *(p.token_id for p in proposals)], request)

    def request(
        self,
        prompt: list[int],
        params: SamplingParams,
        clock: Clock | None = None,
        constraint: Constraint | None = None,
    ) -> Request:
        """What was checked, from now on."""
        return Request(
            prompt,
            params,
            seed=params.seed if params.seed is not None else secrets.randbits(63),
            clock=clock if clock is not None else Clock(),
            begin_s=time.perf_counter(),
            stop_ids=self.all_stop_ids(params),
            max_seq_len=self.max_seq_len,
            constraint=constraint,
        )

    def _chosen(
        self, request: Request, rows: NDArray[np.float32], proposals: list[Proposal]
    ) -> Iterator[Step]:
        """A token of each row, up to the first that is not what had been proposed."""
        for row, proposal in zip(rows, [*proposals, None], strict=True):
            if request.ids:
                self._note_cached(request)
            check_finite(row, self.model.hooks is not None)
            token_id = choose(request.chain, row, request.ids, proposal)
            is_accepted = proposal is not None and token_id == proposal.token_id
            request.clock.n_accepted += is_accepted
            yield request.add(token_id, row)
            if not is_accepted:
                return

    def _proposed(self, request: Request) -> list[Proposal]:
        """What the proposer says, as far as there is room for it."""
        if self.proposer is None:
            return []
        n = min(self.proposer.n_tokens, self.model.workspace.max_logits - 1, request.n_room)
        if n < 1:
            return []
        with self._noting_failure():  # of a draft model, on the same device
            proposals = self.proposer.propose(request.prompt, request.ids, n, request.chain)
        request.clock.n_proposed += len(proposals)
        return proposals

    def logits_after(self, ids: list[int]) -> NDArray[np.float32]:
        """Logits float32[vocab_size] after the ids, of which what is cached is kept."""
        logits = self.prefill(ids, self._n_shared(ids))
        check_finite(logits, self.model.hooks is not None)
        return logits

    def form_of(self, request: Request) -> Form | None:
        """In which form the device decodes this request by itself, with no adapter; None where the
        host must: hooks see what it enqueues."""
        if self.decode_form == "host" or self.must_host or self.model.hooks is not None:
            return None
        decoder = self.model.decoder
        if isinstance(decoder, str) or why_host(request.params, request.stop_ids, decoder):
            return None
        return self.decode_form

    def all_stop_ids(self, params: SamplingParams) -> frozenset[int]:
        """Which tokens end such an answer."""
        own = frozenset() if params.ignore_eos else self.stop_ids
        return own | frozenset(params.stop_ids)

    def _decode_on_device(self, form: Form, request: Request) -> Iterator[Step]:
        """The rest of an answer whose first token the host has chosen."""
        decoder = self.model.decoder
        assert not isinstance(decoder, str)
        slot = slot_request(request, self.model.hp.vocab_size)
        with self._noting_failure():
            for answer in decode(decoder, form, slot, constraint=request.constraint):
                self._note_cached(request)
                request.note(answer.token_id)
                yield step_of(answer)

    def _n_shared(self, prompt: list[int]) -> int:
        """Leading tokens that are cached already; the last one must be computed for its logits."""
        n = min(len(self._cached_ids), len(prompt) - 1)
        if self._cached_ids[:n] == prompt[:n]:
            return n
        differ = (a != b for a, b in zip(self._cached_ids, prompt, strict=False))
        return next(at for at, is_other in enumerate(differ) if is_other)

    def _decode(self, token_ids: list[int], request: Request) -> NDArray[np.float32]:
        """Logits float32[n, vocab_size] after each: the last token, then what is proposed."""
        logits = self._forward(Batch.of((0, request.last_pos, token_ids), logits="all"))
        return self._read_logits(logits)

    def _note_cached(self, request: Request) -> None:
        """The last token has been computed; what lies behind it belongs to nobody."""
        self._cached_ids[request.last_pos :] = [request.ids[-1]]
        self.model.kv.seq_lens[0] = request.last_pos + 1

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
            rows: NDArray[np.float32] = self.model.ops.read(logits)
        return rows
