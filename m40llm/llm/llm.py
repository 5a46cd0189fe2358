"""LLM: load a model file, then generate, stream, chat, or look at its logits."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from m40llm import hub
from m40llm.device import open_device
from m40llm.engine.decode_step import DecodeChoice, DecodeForm, checked_choice
from m40llm.engine.engine import Engine
from m40llm.engine.sampling_params import SamplingParams
from m40llm.errors import RequestError
from m40llm.llm.adapters import Adapters, use
from m40llm.llm.arguments import checked_name, is_many
from m40llm.llm.constraint import Constraints
from m40llm.llm.decode_form import decode_form
from m40llm.llm.embed import Pooling, embeddings
from m40llm.llm.load import on_device, opened
from m40llm.llm.plan import Plan
from m40llm.llm.results import Completion
from m40llm.llm.speculation import speculation
from m40llm.llm.stream import TextStream, open_stream
from m40llm.model.hparams import HParams
from m40llm.model.kv_cache import KVType, checked_kv_type
from m40llm.model.transformer import Transformer
from m40llm.progress import Progress
from m40llm.text import Tokenizer

Prompt = str | Sequence[int]
Messages = Sequence[Mapping[str, Any]]
Params = SamplingParams | None
Name = str | None  # of an adapter


class LLM:
    """A loaded model. Make one with `LLM.load`; close it, or use `with`.

    hparams        HParams
    tokenizer      Tokenizer
    max_seq_len    tokens that prompt and answer may have together
    device_name    "cpu", ...; device_reason says why this one
    plan           what it takes of the device's memory
    path           the file

    Requests run one at a time: a second thread waits its turn.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        plan: Plan,
        path: Path,
        device_reason: str,
        load_s: float,
    ) -> None:
        self._engine: Engine | None = engine
        self._turn = threading.Lock()
        self._turn_of: int | None = None  # the thread whose turn it is
        self._load_s, self._adapters = load_s, Adapters()
        self.hparams: HParams = engine.model.hp
        self.tokenizer = tokenizer
        self._constraints = Constraints(tokenizer, engine.model.hp.vocab_size)
        self.plan = plan
        self.max_seq_len = plan.max_seq_len
        self.path = path
        self.device_name = engine.model.ops.name
        self.device_reason = device_reason

    @classmethod
    def load(
        cls,
        path_or_alias: str | Path,
        device: str = "auto",
        max_seq_len: int | None = None,
        progress: Progress | None = None,
        *,
        cublas: bool | None = None,
        require_sm52: bool = False,
        decode: DecodeChoice | str | None = None,
        speculate: str | Path | None = None,
        speculate_tokens: int | None = None,
        kv_type: KVType | str = "f16",
    ) -> "LLM":
        """Loads a model file.

        path_or_alias  a .gguf file, an alias such as "smollm2", or hf:OWNER/REPO/FILE.gguf;
                       what is not here yet is pulled
        device         auto, cpu, cuda, cuda:N or emulator
        max_seq_len    None: the model's whole context, or as much of it as fits in memory
        progress       called with what is going on and the fraction done; also after the load,
                       when a request is the first to need a GPU kernel, which is then compiled
        cublas         matrix products on a card by cuBLAS (None: as M40LLM_ENABLE_CUBLAS says)
        require_sm52   refuse any other card than one of compute capability 5.2
        decode         who makes the tokens after the first: "host" (ops enqueued one by one, the
                       choice on the host), or the device itself in the form "eager", "graph" or
                       "persistent" (docs/persistent.md): cuda and emulator only. The three give
                       the same tokens, and probabilities apart from the host's by rounding.
                       "auto" is the fastest that works, measured when a card first meets a model
                       of this shape; None is "auto" on a card, and "host" elsewhere
        speculate      "ngram", or a smaller model of the same vocabulary: it proposes tokens, of
                       which the model checks several at once, in the host's loop; the answers
                       are distributed as without it (docs/speculative.md)
        speculate_tokens  how many at a time, 1 to 64 (None: 15 of "ngram", 4 of a model)
        kv_type        the KV cache's: "f16" (cpu: FP32) or "q8_0", about half as large, which
                       decodes in the host's loop (docs/parity_and_kv_layout.md)

        Raises ModelFileError (the file is broken), UnsupportedModelError (sound, but not run
        here), DeviceError (no such device, or it does not fit), PullError, RequestError.
        """
        begin = time.perf_counter()
        choice = None if decode is None else checked_choice(decode)
        cache = checked_kv_type(kv_type)
        path = hub.resolve(checked_name(path_or_alias), progress=progress)
        with (
            opened(path) as model,
            speculation(speculate, speculate_tokens, choice, model, progress) as proposing,
        ):
            ops, reason = open_device(device, cublas=cublas, require_sm52=require_sm52)
            engine, plan = on_device(model, ops, max_seq_len, progress, kv_type=cache)
            if proposing:
                engine.proposer, choice = proposing.of(engine, progress), "host"
        engine.decode_form = decode_form(choice, engine, model.file, progress)
        engine.check_form()
        return cls(engine, model.tokenizer, plan, path, reason, time.perf_counter() - begin)

    def load_lora(self, path: str | Path, name: str | None = None, scale: float = 1.0) -> str:
        """Loads a LoRA adapter (GGUF) for requests with lora=name, `scale` times as strong.

        The name, the file's own by default, is returned. What uses it decodes in the host's loop;
        the model's weights stay as they are. Raises what `load` raises of a file.
        """
        with self._take_turn():
            return self._adapters.load(self._open_engine(), path, name, scale)

    def close(self) -> None:
        """Gives the memory back; any later request is a RequestError."""
        self._engine, self._adapters = None, Adapters()

    def __enter__(self) -> "LLM":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<LLM {self.path.name}: {self.hparams.arch} on {self.device_name}>"

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
        prompt_ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        return self._start(prompt_ids, params, lora, reuse_prefix=False, progress=progress)

    @overload
    def chat(
        self,
        messages: Messages,
        params: Params = ...,
        *,
        stream: Literal[False] = ...,
        lora: Name = ...,
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
        **variables: Any,
    ) -> TextStream: ...
    def chat(
        self,
        messages: Messages,
        params: Params = None,
        *,
        stream: bool = False,
        lora: Name = None,
        **variables: Any,
    ) -> Completion | TextStream:
        """Answers a conversation: [{"role": "user", "content": "..."}, ...].

        The file's chat template makes the prompt; `variables` are what else it reads. What the
        conversation shares with the one before is not computed again.
        """
        prompt_ids = self.tokenizer.encode_chat(messages, **variables)
        answer = self._start(prompt_ids, params, lora, reuse_prefix=True, progress=None)
        if stream:
            return answer
        with answer:
            for _ in answer:
                pass
            return answer.completion

    def logits(
        self, ids: Sequence[int], *, progress: Progress | None = None
    ) -> NDArray[np.float32]:
        """Raw logits after each of the ids: float32[n, vocab_size]."""
        engine = self._open_engine()
        with self._take_turn():
            use(engine, None)
            checked = engine.check_ids(ids, "ids")
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
        ids = [self.tokenizer.encode(one) if isinstance(one, str) else one for one in prompts]
        with self._take_turn():
            use(engine, None)
            rows = embeddings(engine, ids, pooling, normalise, progress)
        return rows if many else rows[0]

    @property
    def decode_form(self) -> DecodeForm:
        """Who makes the tokens after the first; "auto" has been settled."""
        return self._open_engine().decode_form

    @property
    def transformer(self) -> Transformer:
        """The model itself, on its device."""
        return self._open_engine().model

    def _open_engine(self) -> Engine:
        if self._engine is None:
            raise RequestError("the model was closed")
        return self._engine

    def _start(
        self, prompt_ids: Sequence[int], params: Params, lora: Name, **how: Any
    ) -> TextStream:
        engine, adapter = self._open_engine(), self._adapters.named(lora)
        of_model = self._constraints, self._take_turn, self._load_s
        return open_stream(engine, self.tokenizer, prompt_ids, params, adapter, *of_model, **how)

    @contextmanager
    def _take_turn(self) -> Iterator[None]:
        me = threading.get_ident()
        if self._turn_of == me:
            raise RequestError("another stream of this model is open; end or close it first")
        with self._turn:
            self._turn_of = me
            try:
                yield
            finally:
                self._turn_of = None
