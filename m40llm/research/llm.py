"""LLM: what `m40llm.LLM` is, a model that can also be looked into and changed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from m40llm.engine.decode_step import DecodeForm
from m40llm.engine.engine import Engine
from m40llm.engine.scalars import is_whole
from m40llm.errors import RequestError
from m40llm.llm import llm as plain
from m40llm.llm.adapters import use
from m40llm.llm.arguments import Prompt, ids_of, is_many
from m40llm.model.sites import Hooks, sites_of
from m40llm.progress import Progress
from m40llm.research.cache import Cache
from m40llm.research.edits import Chain, Edits
from m40llm.research.lens import (
    Attribution,
    Lens,
    attribution_of,
    attribution_sites,
    lens_of,
    lens_sites,
)
from m40llm.research.patching import Patching, patched
from m40llm.research.selection import (
    At,
    check_position,
    check_single,
    kept_positions,
    matching,
)
from m40llm.research.steering import SteeringVector
from m40llm.research.steps import Choose, RawStep, checked_token
from m40llm.research.trace import Trace


class LLM(plain.LLM):
    __doc__ = plain.LLM.__doc__

    @property
    def decode_form(self) -> DecodeForm:
        """Who makes the tokens after the first: with edits, or kernels of yours, the host."""
        engine = self._loaded_engine()
        is_host = engine.must_host or engine.model.hooks is not None
        return "host" if is_host else super().decode_form

    def sites(self) -> list[str]:
        """The names of what can be read and changed (model/sites.py), in the order of a pass."""
        return list(sites_of(self.transformer.arch, self.hparams))

    def trace(
        self, prompts: Prompt | Sequence[Prompt], keep: str | Sequence[str] = (), *, at: At = None
    ) -> Trace:
        """A forward pass over one prompt or several, for a `with` block:

            with llm.trace("The capital of France is", keep="blk.*.resid_post", at=-1) as t:
                t.scale("blk.3.z", 0, head=2)
            t["blk.5.resid_post"]                                           # float32[1, n_embd]

        RequestError for a prompt that cannot be, and for names and positions of nothing.
        """
        engine = self._open_engine()
        many: Any = prompts if is_many(prompts) else [prompts]
        ids = [ids_of(one, self.tokenizer) for one in many]
        checked = [engine.check_ids(one, f"prompt {n}") for n, one in enumerate(ids)]
        trace = Trace(self.sites(), self.hparams, checked, self._run_trace)
        if not isinstance(keep, str | Sequence):
            raise RequestError(f"keep: expected sites, or globs of sites, got {keep!r}")
        return trace.keep(*([keep] if isinstance(keep, str) else keep), at=at)

    def _run_trace(self, trace: Trace) -> None:
        engine = self._open_engine()
        run = engine.logits if trace.wants("logits") else engine.hidden
        with self._take_turn(), _hooked(engine, trace):
            for n, ids in enumerate(trace.prompts):
                trace.begin_prompt(n)
                for _ in run(ids):
                    pass

    def use_kernel(
        self,
        name: str,
        launch: Callable[..., Any] | None,
        *,
        examples: int = 50,
        progress: Progress | None = None,
    ) -> None:
        """Puts a launch wrapper of yours in the place of m40llm.kernels' of this name, for this
        model alone; None puts ours back.

        It takes what ours takes, `stream` included, and is first checked on so many drawn inputs of
        each fuzz target of the op: RequestError, with the counterexample, where it is wrong. As
        long as it is there, tokens are made by the host's loop.
        """
        engine = self._open_engine()
        if not is_whole(examples) or examples < 1:
            raise RequestError(f"examples: expected at least 1, got {examples!r}")
        if not hasattr(engine.model.ops, "launches"):
            device = engine.model.ops.name
            raise RequestError(f"device: expected cuda or emulator, {device} runs no kernels")
        try:
            from m40llm.research.own_kernel import check_in_use, check_kernel, put
        except ImportError as error:
            extra = 'pip install "m40llm[fuzz]"'
            raise RequestError(f"use_kernel: {error.name} is missing; try: {extra}") from None
        check_in_use(engine.model.ops, name)
        if launch is not None:
            device = self.device_name
            check_kernel(name, launch, device=device, examples=examples, progress=progress)
        with self._take_turn():
            engine.forget()
            engine.must_host = not put(engine.model.ops, name, launch)

    @property
    def cache(self) -> Cache:
        """The KV cache of the text that was read last."""
        return Cache(self._open_engine())

    def steps(
        self, prompt: Prompt, choose: Choose | None = None, max_tokens: int = 16
    ) -> Iterator[RawStep]:
        """Text made a token at a time by a sampler of yours: choose(logits float32[vocab_size], ids
        so far) -> the next token's id; None: the largest.

        It ends with a stop token, after max_tokens, or where the context is full. What the prompt
        shares with what is cached is not computed again.
        """
        if not is_whole(max_tokens) or max_tokens < 1:
            raise RequestError(f"max_tokens: expected at least 1, got {max_tokens!r}")
        if choose is not None and not callable(choose):
            raise RequestError(f"choose: expected a function, got {choose!r}")
        engine, n_vocab = self._open_engine(), self.hparams.vocab_size
        ids = engine.check_ids(ids_of(prompt, self.tokenizer))
        for _ in range(min(max_tokens, engine.max_seq_len - len(ids) + 1)):
            with self._take_turn():
                use(engine, None)
                logits = engine.logits_after(ids)
            token_id = choose(logits, list(ids)) if choose else int(logits.argmax())
            step = RawStep(checked_token(token_id, n_vocab), logits)
            yield step
            if step.token_id in engine.stop_ids:
                return
            ids = [*ids, step.token_id]

    def lens(self, prompt: Prompt, *, at: At = None, top: int = 5) -> Lens:
        """What the residual stream would say behind each layer: the logit lens."""
        if not is_whole(top) or not 1 <= top <= self.hparams.vocab_size:
            raise RequestError(f"top: expected 1 to {self.hparams.vocab_size}, got {top!r}")
        check_single(prompt)
        with self.trace(prompt, keep=lens_sites(self.hparams.n_layers), at=at) as trace:
            pass
        where = kept_positions(at, len(trace.prompts[0]))
        with self._take_turn():
            return lens_of(self.transformer, trace, where, top, self._piece)

    def attribution(
        self,
        prompt: Prompt,
        token: str | int,
        other: str | int | None = None,
        *,
        at: int = -1,
        heads: bool = False,
    ) -> Attribution:
        """What each part of the model has added to the logit of a token at a position, or to its
        difference to that of another; of attention the heads, if asked for.

        token, other  ids, or texts of one token each
        """
        check_single(prompt)
        check_position(at)
        of, than = self._token_id(token), None if other is None else self._token_id(other)
        sites = attribution_sites(self.hparams.n_layers, heads)
        with self.trace(prompt, keep=sites, at=at) as trace:
            pass
        with self._take_turn():
            return attribution_of(self.transformer, trace, of, than, heads)

    def steering_vector(
        self,
        site: str,
        positive: Sequence[Prompt],
        negative: Sequence[Prompt],
        *,
        at: int = -1,
    ) -> SteeringVector:
        """The mean of what a site has at a position of the first prompts, less that of the second:
        a vector for `edits.add`. RequestError for a glob of several sites, and for a site whose
        rows are as long as the text."""
        check_position(at)
        names = matching(site, self.sites())
        if len(names) != 1 or names[0].endswith((".scores", ".pattern")):
            raise RequestError(f"site: expected one, with rows of a fixed size, got {site!r}")
        means = []
        for prompts in (positive, negative):
            if not is_many(prompts):
                raise RequestError(f"prompts: expected a list of them, got {prompts!r}")
            with self.trace(prompts, keep=site, at=at) as trace:
                pass
            rows = [trace[names[0], n][0] for n in range(len(prompts))]
            means.append(np.array(rows, np.float64).mean(axis=0))
        return SteeringVector(names[0], np.asarray(means[0] - means[1], np.float32))

    def patch(
        self,
        clean: Prompt,
        corrupted: Prompt,
        sites: str | Sequence[str],
        token: str | int,
        other: str | int,
        *,
        progress: Progress | None = None,
    ) -> Patching:
        """Puts what the clean prompt's pass has at each of the sites, and each position, into the
        corrupted one's, and measures how far the answer `token` comes back from `other`.

        Both prompts have the same number of tokens; a pass each site and position.
        """
        than = self._token_id(other)
        return patched(self, clean, corrupted, sites, (self._token_id(token), than), progress)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Each token's text; bytes that are no UTF-8 by themselves become U+FFFD."""
        return [self._piece(token_id) for token_id in ids]

    def _piece(self, token_id: int) -> str:
        return self.tokenizer.token_bytes(token_id).decode("utf-8", errors="replace")

    def _token_id(self, token: str | int) -> int:
        """RequestError for what is no single token."""
        ids = [token] if not isinstance(token, str) else self.tokenizer.encode_inside(token)
        if len(ids) != 1:
            raise RequestError(f"token: expected a text of one token, {token!r} has {len(ids)}")
        return self._open_engine().check_ids(ids, "token")[0]

    @contextmanager
    def edited(self) -> Iterator[Edits]:
        """Edits that hold for whatever is asked of the model inside the `with` block:

            with llm.edited() as edits:
                edits.add("blk.5.resid_post", vector)
                print(llm.generate("I think that").text)

        Tokens are then made by the host's loop, whatever `decode` says: a recorded step, or a
        resident one, has no sites.
        """
        edits = Edits(self.sites(), self.hparams)
        try:
            with _hooked(self._open_engine(), edits):
                yield edits
        finally:
            edits.is_over = True


@contextmanager
def _hooked(engine: Engine, hooks: Hooks) -> Iterator[None]:
    """With the hooks on the model; what is cached with them, or without, is not mixed."""
    use(engine, None)
    before = engine.model.hooks
    engine.forget()
    engine.model.hooks = hooks if before is None else Chain((before, hooks))
    try:
        yield
    finally:
        engine.model.hooks = before
        engine.forget()
