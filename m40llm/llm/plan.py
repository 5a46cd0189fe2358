"""What a model will take of a device's memory, reckoned before anything is loaded."""

from dataclasses import dataclass

from m40llm.device import Ops
from m40llm.errors import DeviceError, RequestError
from m40llm.gguf import GGUFFile
from m40llm.model.arch import architecture_of
from m40llm.model.hparams import HParams
from m40llm.model.kv_cache import KVType, cache_bytes, check_heads
from m40llm.model.rope import rope_bytes
from m40llm.model.unpacked import Unpacked, unpacked_tensors
from m40llm.model.weights import weight_bytes
from m40llm.model.workspace import workspace_bytes

MAX_TOKENS = 512  # rows of one forward pass: a prompt is read in chunks of this many
MAX_LOGITS_BYTES = 64 << 20
SHORTEST_CONTEXT = 256  # tokens; a context cut below this serves nobody


@dataclass(frozen=True)
class Plan:
    """Sizes of one loaded model: lengths in tokens, the rest in bytes."""

    max_seq_len: int
    max_tokens: int
    max_logits: int
    weights: int
    cache: int
    workspace: int
    free: int
    unpacked: tuple[Unpacked, ...] = ()  # part of `weights`: types that the device does not read

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.workspace

    def __str__(self) -> str:
        return (
            f"{_size(self.total)} (weights {_size(self.weights)}, cache {_size(self.cache)} for "
            f"{self.max_seq_len} tokens, workspace {_size(self.workspace)})"
        )


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.1f} MB"


def plan_memory(
    ops: Ops,
    file: GGUFFile,
    hp: HParams,
    max_seq_len: int | None,
    at_most: int | None = None,
    kv_type: KVType = "f16",
) -> Plan:
    """How the model would lie in memory. None takes the whole context, `at_most` so many tokens of
    it, or as much as fits.

    Raises RequestError for a max_seq_len that the model does not have, or a kv_type that cannot
    hold its heads; DeviceError with the figures where the model does not fit.
    """
    check_heads(hp, kv_type)
    if max_seq_len is not None and not 1 <= max_seq_len <= hp.context_length:
        raise RequestError(
            f"max_seq_len: expected 1 to {hp.context_length} (the model's context_length), "
            f"got {max_seq_len}"
        )
    wanted = max_seq_len or min(hp.context_length, at_most or hp.context_length)
    plan = _plan(ops, file, hp, wanted, kv_type)
    while plan.total > plan.free and max_seq_len is None and wanted > SHORTEST_CONTEXT:
        wanted = max(SHORTEST_CONTEXT, wanted // 2)
        plan = _plan(ops, file, hp, wanted, kv_type)
    if plan.total > plan.free:
        raise DeviceError(
            f"the model needs {plan}; device {ops.name!r} has {_size(plan.free)} free"
            f"; {_what_helps(plan)}"
        )
    return plan


def _what_helps(plan: Plan) -> str:
    if plan.weights > plan.free:
        return "a smaller quantisation of the model would take less"
    if plan.max_seq_len > SHORTEST_CONTEXT:
        return "a smaller max_seq_len (--max-seq-len) takes less, as does a smaller quantisation"
    return "a smaller quantisation of the model, or max_seq_len (--max-seq-len), would take less"


def _plan(ops: Ops, file: GGUFFile, hp: HParams, max_seq_len: int, kv_type: KVType) -> Plan:
    max_tokens = min(MAX_TOKENS, max_seq_len)
    n_ropes = len(set(architecture_of(file).ropes(hp.n_layers)))
    max_logits = max(1, min(128, max_tokens, MAX_LOGITS_BYTES // (4 * hp.vocab_size)))
    return Plan(
        max_seq_len=max_seq_len,
        max_tokens=max_tokens,
        max_logits=max_logits,
        weights=weight_bytes(ops, file),
        cache=cache_bytes(hp, 1, max_seq_len, ops.cache_dtype.itemsize, kv_type),
        workspace=workspace_bytes(hp, max_tokens, max_logits)
        + n_ropes * rope_bytes(hp.rope, max_seq_len),
        free=ops.free_bytes(),
        unpacked=unpacked_tensors(ops, file),
    )
