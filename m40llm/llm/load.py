"""From a model file to an engine on a device, in two steps: what is in it, then its weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from m40llm.device import Ops, open_device
from m40llm.device.decoder import STEPPED
from m40llm.engine.decode_step import DecodeChoice, no_form
from m40llm.engine.engine import Engine
from m40llm.errors import naming
from m40llm.gguf import GGUFFile, open_gguf
from m40llm.llm.fit import GpuLayers, plan_memory
from m40llm.llm.plan import Plan
from m40llm.model.arch import Architecture, architecture_of
from m40llm.model.check_tensors import check_tensors
from m40llm.model.hparams import HParams
from m40llm.model.kv_cache import KVType
from m40llm.model.part import Part
from m40llm.model.program import why_never
from m40llm.model.staged import StagedTransformer
from m40llm.model.transformer import Transformer
from m40llm.model.weights import load_weights, rope_factors
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
        with naming(path):
            arch, hp = architecture_of(file), HParams.from_gguf(file)
            check_tensors(file, arch, hp)
            model = ModelFile(file, arch, hp, build_tokenizer(file))
        yield model
    finally:
        file.close()


def on_device(
    model: ModelFile,
    ops: Ops,
    max_seq_len: int | None,
    progress: Progress | None,
    *,
    at_most: int | None = None,
    kv_type: KVType | None = None,
    gpu_layers: GpuLayers = "all",
    fit: bool = False,
    n_seqs: int = 1,
    decode: DecodeChoice | None = None,
) -> tuple[Engine, Plan]:
    """The model with its weights on the device, and what it takes of it: see plan_memory.

    RequestError before weights are read where no device can decode such a model as is asked for.
    """
    plan = plan_memory(
        *(ops, model.file, model.hp, max_seq_len, at_most, kv_type),
        gpu_layers=gpu_layers,
        fit=fit,
        n_seqs=n_seqs,
    )
    reason = why_never(model.arch, model.hp, plan.kv_type)
    if decode == "persistent" and reason:
        raise no_form(decode, ops.name, reason, STEPPED if ops.name != "cpu" else ())
    stages = []
    for share in plan.shares:
        where = ops if share.device == ops.name else open_device(share.device)[0]
        where.prepare(progress, has_q8_cache=plan.kv_type == "q8_0")
        stages.append(_stage(model, where, share.part, plan, progress))
    transformer = stages[0] if len(stages) == 1 else StagedTransformer(tuple(stages))
    return Engine(transformer, model.tokenizer.stop_ids), plan


def _stage(
    model: ModelFile, ops: Ops, part: Part, plan: Plan, progress: Progress | None
) -> Transformer:
    file, arch, hp = model.file, model.arch, model.hp
    return Transformer(
        ops,
        arch,
        hp,
        load_weights(ops, file, arch, hp, progress, part),
        n_seqs=plan.n_seqs,
        max_seq_len=plan.max_seq_len,
        max_tokens=plan.max_tokens,
        max_logits=plan.max_logits if part.has_output else 0,
        freq_factors=rope_factors(file, hp, plan.max_seq_len),
        kv_type=plan.kv_type,
        part=part,
    )
