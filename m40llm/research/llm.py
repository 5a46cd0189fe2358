"""LLM: what `m40llm.LLM` is, a model that can also be looked into and changed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from m40llm.engine.decode_step import DecodeForm
from m40llm.engine.engine import Engine
from m40llm.llm import llm as plain
from m40llm.llm.adapters import use
from m40llm.llm.answers import Prompt
from m40llm.llm.arguments import is_many
from m40llm.model.sites import Hooks, sites_of
from m40llm.research.edits import Edits
from m40llm.research.selection import At
from m40llm.research.trace import Trace


class LLM(plain.LLM):
    __doc__ = plain.LLM.__doc__

    @property
    def decode_form(self) -> DecodeForm:
        """Who makes the tokens after the first: the host, as long as there are edits."""
        return "host" if self.transformer.hooks is not None else super().decode_form

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
        ids = [self.tokenizer.encode(one) if isinstance(one, str) else one for one in many]
        checked = [engine.check_ids(one, f"prompt {n}") for n, one in enumerate(ids)]
        trace = Trace(self.sites(), self.hparams, checked, self._run_trace)
        return trace.keep(*([keep] if isinstance(keep, str) else keep), at=at)

    def _run_trace(self, trace: Trace) -> None:
        engine = self._open_engine()
        run = engine.logits if trace.wants("logits") else engine.hidden
        with self._take_turn(), _hooked(engine, trace):
            for n, ids in enumerate(trace.prompts):
                trace.begin_prompt(n)
                for _ in run(ids):
                    pass

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
        with _hooked(self._open_engine(), edits):
            yield edits


@contextmanager
def _hooked(engine: Engine, hooks: Hooks) -> Iterator[None]:
    """With the hooks on the model; what is cached with them, or without, is not mixed."""
    use(engine, None)
    before = engine.model.hooks
    engine.forget()
    engine.model.hooks = hooks
    try:
        yield
    finally:
        engine.model.hooks = before
        engine.forget()
