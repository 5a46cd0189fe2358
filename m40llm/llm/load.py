"""From a model file to an engine on a device, in two steps: what is in it, then its weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from m40llm.device import Ops
from m40llm.engine.engine import Engine
from m40llm.gguf import GGUFFile, open_gguf
from m40llm.llm.plan import Plan, plan_memory
from m40llm.model.arch import Architecture, architecture_of
from m40llm.model.hparams import HParams
from m40llm.model.kv_cache import KVType
from m40llm.model.transformer import Transformer
from m40llm.model.weights import check_tensors, load_weights, rope_factors
from m40llm.progress import Progress
from m40llm.text import Tokenizer, build_tokenizer


@dataclass(frozen=True)
class ModelFile:
    """An open file, found to be sound; no weights have been read."""

    file: GGUFFile
    arch: Architecture
    hp: HParams
    tokenizer: Tokenizer


@contextmanager
def opened(path: Path) -> Iterator[ModelFile]:
    """A model file, closed at the end; its mapping lives as long as the weights that view it."""
    file = open_gguf(path)
    try:
        arch, hp = architecture_of(file), HParams.from_gguf(file)
        check_tensors(file, arch, hp)
        yield ModelFile(file, arch, hp, build_tokenizer(file))
    finally:
        file.close()


def on_device(
    model: ModelFile,
    ops: Ops,
    max_seq_len: int | None,
    progress: Progress | None,
    *,
    at_most: int | None = None,
    kv_type: KVType = "f16",
) -> tuple[Engine, Plan]:
    """The model with its weights on the device, and what it takes of it: see plan_memory."""
    file, arch, hp = model.file, model.arch, model.hp
    plan = plan_memory(ops, file, hp, max_seq_len, at_most, kv_type)
    ops.prepare(progress, has_q8_cache=kv_type == "q8_0")
    transformer = Transformer(
        ops,
        arch,
        hp,
        load_weights(ops, file, arch, hp, progress),
        n_seqs=1,
        max_seq_len=plan.max_seq_len,
        max_tokens=plan.max_tokens,
        max_logits=plan.max_logits,
        freq_factors=rope_factors(file, hp, plan.max_seq_len),
        kv_type=kv_type,
    )
    return Engine(transformer, model.tokenizer.stop_ids), plan
