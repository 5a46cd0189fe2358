"""The plan that a model is loaded by: context, cache type and layers on the device that fit."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from m40llm.device import Ops, open_device
from m40llm.engine.scalars import is_whole
from m40llm.errors import DeviceError, RequestError
from m40llm.gguf import GGUFFile
from m40llm.llm.plan import Plan, Reckoner, size
from m40llm.model.hparams import HParams
from m40llm.model.kv_cache import KV_TYPES, KVType, check_heads

GpuLayers = int | Literal["auto", "all"]

SHORTEST_CONTEXT: Final = 256  # tokens; a context cut below this serves nobody
USEFUL_CONTEXT: Final = 8192  # tokens; rather than cut it below this, another choice is made
STEP: Final = 256  # tokens; the contexts that `fit` chooses from are its multiples
SPARE: Final = 32  # where memory is filled, one part in so many stays free for what comes later


@dataclass(frozen=True)
class Choices:
    """What may be chosen from, the preferred first.

    contexts  lengths in tokens, the longest first
    counts    layers on the device, the others being on `cpu`
    kv_types  of the cache
    spare     of a device's free memory, one part in so many is not to be filled; 0: it is
    """

    contexts: Sequence[int]
    counts: Sequence[int]
    kv_types: Sequence[KVType] = ("f16",)
    spare: int = 0

    def fits(self, plan: Plan) -> bool:
        return all(
            share.total <= share.free - (share.free // self.spare if self.spare else 0)
            for share in plan.shares
        )


def checked_gpu_layers(value: object) -> GpuLayers:
    """RequestError for what is none; how many layers there are is not known yet."""
    if value is None or value == "all":
        return "all"
    if value == "auto":
        return "auto"
    if not is_whole(value) or value < 0:
        raise RequestError(
            f"gpu_layers: expected a number of layers from 0 on, auto or all, got {value!r}"
        )
    return int(value)


def plan_memory(
    ops: Ops,
    file: GGUFFile,
    hp: HParams,
    max_seq_len: int | None,
    at_most: int | None = None,
    kv_type: KVType | None = None,
    *,
    gpu_layers: GpuLayers = "all",
    fit: bool = False,
    n_seqs: int = 1,
) -> Plan:
    """How the model would lie in memory.

    max_seq_len  None takes the whole context, or as much as fits: half of it, and so on
    at_most      tokens of it, of a draft model: gpu_layers is not its own
    kv_type      None: f16, or what fit chooses
    gpu_layers   so many of the last layers on this device, the others on `cpu`; "auto" takes as
                 many as fit beside a useful context
    n_seqs       sequences of so many tokens each
    fit          fills the device: the longest context that fits; without a kv_type in the first
                 of f16 and q8_0 in which that is a useful one

    Raises RequestError for a max_seq_len or a number of layers that the model does not have, or a
    kv_type that cannot hold its heads; DeviceError with the figures where the model does not fit.
    """
    check_heads(hp, kv_type or "f16")
    _check(ops, hp, max_seq_len, gpu_layers, fit)
    if ops.name == "cpu" and gpu_layers == "auto":
        gpu_layers = "all"  # the others would lie in the same memory
    host = ops if ops.name == "cpu" else open_device("cpu")[0]
    reckoner = Reckoner(ops, host, file, hp, n_seqs)
    choices = choices_of(hp, max_seq_len, at_most, kv_type, gpu_layers=gpu_layers, fit=fit)
    if plan := fitting(reckoner, choices):
        return plan
    raise DeviceError(_refusal(reckoner, choices, may_split=at_most is None))


def _check(
    ops: Ops, hp: HParams, max_seq_len: int | None, gpu_layers: GpuLayers, fit: bool
) -> None:
    if not isinstance(fit, bool):
        raise RequestError(f"fit: expected true or false, got {fit!r}")
    if max_seq_len is not None and not is_whole(max_seq_len):
        raise RequestError(f"max_seq_len: expected a number of tokens, got {max_seq_len!r}")
    if fit and max_seq_len is not None:
        raise RequestError("fit: it chooses the context; expected no max_seq_len beside it")
    if max_seq_len is not None and not 1 <= max_seq_len <= hp.context_length:
        raise RequestError(
            f"max_seq_len: expected 1 to {hp.context_length} (the model's context_length), "
            f"got {max_seq_len}"
        )
    if not isinstance(gpu_layers, int):
        return
    if gpu_layers > hp.n_layers:
        raise RequestError(
            f"gpu_layers: expected 0 to {hp.n_layers} (the model's layers), auto or all, "
            f"got {gpu_layers}"
        )
    if gpu_layers and ops.name == "cpu":
        raise RequestError(
            f"gpu_layers: expected a card (--device cuda) or the emulator to put {gpu_layers} "
            "layers on, got device 'cpu'"
        )


def choices_of(
    hp: HParams,
    max_seq_len: int | None = None,
    at_most: int | None = None,
    kv_type: KVType | None = None,
    *,
    gpu_layers: GpuLayers,
    fit: bool,
) -> Choices:
    """What may be chosen from, where so much is asked for; see plan_memory."""
    return Choices(
        _contexts(hp, max_seq_len, at_most, fit=fit),
        _counts(hp, gpu_layers),
        _kv_types(hp, kv_type, fit=fit),
        SPARE if fit or gpu_layers == "auto" else 0,
    )


def _contexts(hp: HParams, max_seq_len: int | None, at_most: int | None, *, fit: bool) -> list[int]:
    """Lengths to try, the longest first."""
    if max_seq_len is not None:
        return [max_seq_len]
    whole = min(hp.context_length, at_most or hp.context_length)
    if fit:
        return [whole, *range((whole - 1) // STEP * STEP, SHORTEST_CONTEXT - 1, -STEP)]
    found = [whole]
    while found[-1] > SHORTEST_CONTEXT:
        found.append(max(SHORTEST_CONTEXT, found[-1] // 2))
    return found


def _counts(hp: HParams, gpu_layers: GpuLayers) -> list[int]:
    if gpu_layers == "auto":
        return list(range(hp.n_layers, -1, -1))
    return [hp.n_layers if gpu_layers == "all" else gpu_layers]


def _kv_types(hp: HParams, kv_type: KVType | None, *, fit: bool) -> list[KVType]:
    """`fit` may take any that holds the heads, where none is asked for."""
    if kv_type is not None:
        return [kv_type]
    return [known for known in KV_TYPES if _can_hold(hp, known)] if fit else ["f16"]


def _can_hold(hp: HParams, kv_type: KVType) -> bool:
    """Whether a cache of this type holds the model's heads."""
    try:
        check_heads(hp, kv_type)
    except RequestError:
        return False
    return True


def fitting(reckoner: Reckoner, choices: Choices) -> Plan | None:
    """The most layers that leave room for a useful context: all of it, or USEFUL_CONTEXT.

    Another type than the first is for who would else lose layers, not for one layer more. Where
    no number of layers leaves so much room, the longest context. None where nothing fits.
    """
    useful = min(USEFUL_CONTEXT, choices.contexts[0])
    found = []
    for n in choices.counts:
        for kv_type in choices.kv_types if n == choices.counts[0] else choices.kv_types[:1]:
            plan = longest(reckoner, choices, n, kv_type)
            if plan and plan.max_seq_len >= useful:
                return plan
            found.append(plan)
    return max(filter(None, found), key=lambda plan: plan.max_seq_len, default=None)


def longest(reckoner: Reckoner, choices: Choices, n: int, kv_type: KVType) -> Plan | None:
    """With so many layers on the device, the longest context that fits; None where none does."""

    def plan(length: int) -> Plan:
        return reckoner.plan(n, length, kv_type)

    contexts = choices.contexts
    at = bisect_left(contexts, True, key=lambda length: choices.fits(plan(length)))
    return plan(contexts[at]) if at < len(contexts) else None


def _refusal(reckoner: Reckoner, choices: Choices, *, may_split: bool) -> str:
    plan = reckoner.plan(choices.counts[0], choices.contexts[-1], choices.kv_types[-1])
    lacking = [share for share in plan.shares if not choices.fits(replace(plan, shares=(share,)))]
    kept = f" (1/{choices.spare} of it to be kept)" if choices.spare else ""
    free = ", ".join(f"device {s.device!r} has {size(s.free)} free{kept}" for s in lacking)
    split = _that_fit(reckoner, choices) if may_split else ""
    return f"the model needs {plan}; {free}; {split or _what_helps(plan)}"


def _that_fit(reckoner: Reckoner, choices: Choices) -> str:
    """How many layers would; empty where splitting the model does not help."""
    n_layers = reckoner.hp.n_layers
    fewer = replace(choices, counts=range(choices.counts[0] - 1, 0, -1), spare=SPARE)
    plan = fitting(reckoner, fewer)
    if plan is None or reckoner.ops.name == "cpu":
        return ""
    n = len(plan.shares[-1].part.layers)
    return (
        f"with gpu_layers={n} (--gpu-layers {n}, or auto) the last {n} of {n_layers} layers fit "
        "there, and the others run on the CPU; a smaller quantisation takes less"
    )


def _what_helps(plan: Plan) -> str:
    if any(share.weights > share.free for share in plan.shares):
        return "a smaller quantisation of the model would take less"
    if plan.max_seq_len > SHORTEST_CONTEXT:
        return "a smaller max_seq_len (--max-seq-len) takes less, as does a smaller quantisation"
    return "a smaller quantisation of the model, or max_seq_len (--max-seq-len), would take less"
