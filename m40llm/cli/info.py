"""`m40llm info`: what a model file holds, and what each device would need to run it."""

import dataclasses
from typing import TYPE_CHECKING, Any

from m40llm.cli import options as opt
from m40llm.cli.guard import guarded
from m40llm.cli.output import human_bytes, print_json, progress_bar, table
from m40llm.errors import ModelFileError

if TYPE_CHECKING:
    from m40llm.gguf import GGUFFile
    from m40llm.model.hparams import HParams

CONTEXTS = (2048, 8192)  # tokens, where the model has as many; its full context is added
GENERAL_KEYS = ("name", "architecture", "size_label", "license", "organization", "basename")


@guarded
def info(
    model: opt.Model,
    as_json: opt.AsJson = False,
    debug: opt.Debug = False,
) -> None:
    """Show a model's hyper-parameters, tensor types, sizes, and the memory that it needs.

    Reads the file's head only, so it is quick for any size, and works on files that m40llm
    cannot run: it says why.

    \b
    Examples:
      m40llm info smollm2
      m40llm info model.gguf --json
    """
    from m40llm.gguf import open_gguf
    from m40llm.hub import resolve

    with progress_bar() as progress:
        path = resolve(model, progress=progress)
    with open_gguf(path) as file:
        document = {"model": model, "path": str(path), **describe(file)}
    if as_json:
        print_json(document)
    else:
        print(_report(document))


def describe(file: "GGUFFile") -> dict[str, Any]:
    """All that `info` tells of an open file, as JSON values; sizes in bytes.

    Raises:
        ModelFileError: a key that everybody reads (the architecture, a name) has a wrong type.
    """
    hp, problem = _hparams(file)
    return {
        "n_bytes": file.n_bytes,
        "gguf_version": file.version,
        "general": _general(file),
        "runs": problem is None,
        "problem": problem,
        "hparams": dataclasses.asdict(hp) if hp else None,
        "tensors": _tensors(file),
        "needs": _needs(file, hp) if hp and problem is None else None,
        "cards": _cards(file, hp) if hp and problem is None else None,
        "tokenizer": _tokenizer(file),
    }


def _hparams(file: "GGUFFile") -> tuple["HParams | None", str | None]:
    """The hyper-parameters as far as they can be read, and why the file does not run."""
    from m40llm.model.arch import architecture_of
    from m40llm.model.check_tensors import check_tensors
    from m40llm.model.hparams import HParams

    if not file.tensors:
        return None, "the file holds a vocabulary and no tensors"
    hp = None
    try:
        hp = HParams.from_gguf(file)
        check_tensors(file, architecture_of(file), hp)
    except ModelFileError as error:
        return hp, str(error)
    return hp, None


def _general(file: "GGUFFile") -> dict[str, str]:
    keys = {key: f"general.{key}" for key in GENERAL_KEYS}
    return {name: file.metadata.get_str(key) for name, key in keys.items() if key in file.metadata}


def _tensors(file: "GGUFFile") -> dict[str, Any]:
    """Counts and bytes, in all and by type, the type with most bytes first."""
    types: dict[str, dict[str, Any]] = {}
    for tensor in file.tensors.values():
        name = tensor.type.name
        row = types.setdefault(name, {"type": name, "n_tensors": 0, "n_elements": 0, "n_bytes": 0})
        row["n_tensors"] += 1
        row["n_elements"] += tensor.n_elements
        row["n_bytes"] += tensor.n_bytes
    rows = sorted(types.values(), key=lambda row: -row["n_bytes"])
    totals = {key: sum(row[key] for row in rows) for key in ("n_tensors", "n_elements", "n_bytes")}
    return {**totals, "types": rows}


def _needs(file: "GGUFFile", hp: "HParams") -> dict[str, Any]:
    """Estimated bytes by device: weights, and the KV cache of one sequence by context length.

    A GPU (and the emulator) keeps most types as they are, others in F16, and the cache in FP16; the
    CPU reads most types where they lie in the mapped file, holds others in FP32, and so the cache.
    """
    from m40llm.device.cpu.ops import CpuOps
    from m40llm.device.gpu import held
    from m40llm.model.kv_cache import cache_bytes
    from m40llm.model.part import Part
    from m40llm.model.weights import weight_bytes

    full = hp.context_length
    lengths = sorted({n for n in CONTEXTS if n < full} | {full})
    whole = Part.whole(hp.n_layers)
    weights = {"cpu": weight_bytes(CpuOps(), file, whole), "cuda": weight_bytes(held, file, whole)}
    return {
        device: {
            "weights_bytes": weights[device],
            "kv_bytes": {str(n): cache_bytes(hp, 1, n, itemsize) for n in lengths},
        }
        for device, itemsize in (("cpu", 4), ("cuda", 2))
    }


def _cards(file: "GGUFFile", hp: "HParams") -> list[dict[str, Any]]:
    """What fits on a Tesla M40 (docs/memory.md); of the plan, the card's share of the bytes."""
    from m40llm.llm.cards import on_cards

    found = []
    for card in on_cards(file, hp):
        best = card.best
        there = [share for share in best.shares if share.device == card.card]
        plan = {
            "gpu_layers": sum(len(share.part.layers) for share in there),
            "max_seq_len": best.max_seq_len,
            "kv_type": best.kv_type,
            "weights_bytes": sum(share.weights for share in there),
            "kv_bytes": sum(share.cache for share in there),
            "workspace_bytes": sum(share.workspace for share in there),
        }
        longest = {"max_seq_len": card.contexts}
        found.append({"card": card.card, "free_bytes": card.free, "plan": plan, **longest})
    return found


def _tokenizer(file: "GGUFFile") -> dict[str, Any]:
    """Read key by key: the whole vocabulary of a large model takes half a second."""
    metadata, key = file.metadata, "tokenizer.ggml."
    return {
        "kind": metadata.get_str(f"{key}model", None),
        "pre": metadata.get_str(f"{key}pre", None),
        "vocab_size": metadata.n_items(f"{key}tokens") if f"{key}tokens" in metadata else None,
        "bos_id": metadata.get_int(f"{key}bos_token_id", None),
        "eos_id": metadata.get_int(f"{key}eos_token_id", None),
        "has_chat_template": "tokenizer.chat_template" in metadata,
    }


def _report(document: dict[str, Any]) -> str:
    general, tensors, words = document["general"], document["tensors"], document["tokenizer"]
    parts = [
        f"{document['path']}: GGUF v{document['gguf_version']}, {human_bytes(document['n_bytes'])}",
        table(general.items()) if general else "",
        f"tensors: {tensors['n_tensors']}, {tensors['n_elements'] / 1e6:,.1f} million weights",
    ]
    if tensors["types"]:
        rows = [
            (row["type"], row["n_tensors"], "tensors", f"{human_bytes(row['n_bytes']):>10}")
            for row in tensors["types"]
        ]
        parts.append(table(rows))
    if document["hparams"]:
        rope = document["hparams"]["rope"]
        flat = {
            **document["hparams"],
            "rope": f"theta {rope['theta']:g}, scaling {rope['scaling']}",
        }
        parts += ["hyper-parameters:", table((k, _shown(v)) for k, v in flat.items())]
    parts += ["tokenizer:", table((name, _shown(value)) for name, value in words.items())]
    if document["needs"]:
        parts += ["memory needed (estimate: weights + KV cache of one sequence):"]
        parts.append(_needs_table(document["needs"]))
    if document["cards"]:
        parts += ["what fits on a Tesla M40 (--fit --gpu-layers auto; docs/memory.md):"]
        parts.append(_cards_table(document["cards"], document["hparams"]["n_layers"]))
    parts.append(f"m40llm cannot run it: {document['problem']}" if document["problem"] else "")
    return "\n".join(part for part in parts if part)


def _shown(value: Any) -> str:
    """A value of the metadata for people."""
    if value is None or isinstance(value, bool):
        return {None: "-", True: "yes", False: "no"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _needs_table(needs: dict[str, Any]) -> str:
    lengths = list(needs["cpu"]["kv_bytes"])
    rows: list[tuple[str, ...]] = [("", "weights", *(f"at {n} tokens" for n in lengths))]
    for device, need in needs.items():
        weights, cells = need["weights_bytes"], need["kv_bytes"].values()
        totals = (human_bytes(weights + n_bytes) for n_bytes in cells)
        rows.append((device, human_bytes(weights), *totals))
    return table(rows)


def _cards_table(cards: list[dict[str, Any]], n_layers: int) -> str:
    types = list(cards[0]["max_seq_len"])
    head = ("", "free", "layers", "weights", "context", "cache", "workspace")
    rows: list[tuple[str, ...]] = [(*head, *(f"all layers, {name}: context" for name in types))]
    for card in cards:
        plan, longest = card["plan"], card["max_seq_len"]
        cells = [
            f"{plan['gpu_layers']} of {n_layers}",
            human_bytes(plan["weights_bytes"]),
            f"{plan['max_seq_len']:,}",
            f"{human_bytes(plan['kv_bytes'])} {plan['kv_type']}",
            human_bytes(plan["workspace_bytes"]),
        ]
        limits = (f"{longest[name]:,}" if longest[name] else "-" for name in types)
        rows.append((card["card"], human_bytes(card["free_bytes"]), *cells, *limits))
    return table(rows)
