"""LLM: load a model file, then generate, stream, chat, or look at its logits."""

import time
from pathlib import Path
from typing import Self

from m40llm import hub
from m40llm.device import open_device
from m40llm.device.decoder import FORMS
from m40llm.engine.decode_step import DecodeChoice, DecodeForm, checked_choice
from m40llm.engine.engine import Engine
from m40llm.llm.adapters import Adapters
from m40llm.llm.answers import Answers
from m40llm.llm.arguments import checked_name, checked_slots
from m40llm.llm.decode_form import decode_form
from m40llm.llm.fit import GpuLayers, checked_gpu_layers
from m40llm.llm.load import on_device, opened
from m40llm.llm.plan import Plan
from m40llm.llm.speculation import speculation
from m40llm.model.kv_cache import KVType, checked_kv_type
from m40llm.model.staged import Model
from m40llm.progress import Progress
from m40llm.text import Tokenizer


class LLM(Answers):
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
        super().__init__(engine, tokenizer, load_s)
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
        kv_type: KVType | str | None = None,
        gpu_layers: GpuLayers | None = None,
        fit: bool = False,
        slots: int = 1,
    ) -> Self:
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
                       of this shape; None is "auto" on a card, and "host" elsewhere. Beside
                       `speculate` both stand for "host"
        speculate      "ngram", or a smaller model of the same vocabulary: it proposes tokens, of
                       which the model checks several at once, in the host's loop; the answers
                       are distributed as without it (docs/speculative.md)
        speculate_tokens  how many at a time, 1 to 64 (None: 15 of "ngram", 4 of a model)
        kv_type        the KV cache's: "f16" (cpu: FP32) or "q8_0", about half as large, which
                       "persistent" does not read (docs/parity_and_kv_layout.md); None: "f16", or
                       what `fit` chooses
        gpu_layers     so many of the model's last layers, and the output, on the device, the others
                       on `cpu` (docs/memory.md); "auto": as many as fit in its memory; None is
                       "all". In the host's loop, unless all are there
        fit            fill the device's memory: the longest context that fits, where otherwise it
                       is halved until it does; in q8_0 where none of use does in f16
        slots          sequences that the cache holds: requests that a Service has under way at a
                       time, each of up to max_seq_len tokens

        Raises ModelFileError (the file is broken), UnsupportedModelError (sound, but not run
        here), DeviceError (no such device, or it does not fit), PullError, RequestError.
        """
        begin = time.perf_counter()
        choice = None if decode is None else checked_choice(decode)
        cache = None if kv_type is None else checked_kv_type(kv_type)
        if cache is None and choice in FORMS:
            cache = "f16"  # their fastest, whatever `fit` would rather have
        n_layers, n_slots = checked_gpu_layers(gpu_layers), checked_slots(slots)
        path = hub.resolve(checked_name(path_or_alias), progress=progress)
        with (
            opened(path) as model,
            speculation(speculate, speculate_tokens, choice, model, progress) as proposing,
        ):
            ops, reason = open_device(device, cublas=cublas, require_sm52=require_sm52)
            engine, plan = on_device(
                *(model, ops, max_seq_len, progress),
                kv_type=cache,
                gpu_layers=n_layers,
                fit=fit,
                n_seqs=n_slots,
                decode=choice,
            )
            if proposing:
                engine.proposer, choice = proposing.of(engine, progress), "host"
        if engine.model.ops.name != ops.name:
            reason = f"no layer is on {ops.name}: gpu_layers={gpu_layers}"
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<LLM {self.path.name}: {self.hparams.arch} on {self.device_name}>"

    @property
    def decode_form(self) -> DecodeForm:
        """Who makes the tokens after the first; "auto" has been settled."""
        return self._loaded_engine().decode_form

    @property
    def transformer(self) -> Model:
        """The model itself, on its device, or in stages on two."""
        return self._open_engine().model
