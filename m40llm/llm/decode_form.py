"""Which form of decode `decode="auto"` stands for: measured once, then remembered on disk.

<cache>/decode/<digest of the key>.json     {"key": {...}, "form": "graph", "ms_per_token": {...}}

A file a key, replaced whole: two processes at once can lose a measurement, not damage one. What
cannot be read, or is another key's, is measured and written again.
"""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

from m40llm import __version__
from m40llm.device.gpu.code_digest import code_digest
from m40llm.device.gpu.disk_cache import write_whole
from m40llm.engine.decode_step import DecodeChoice, DecodeForm
from m40llm.engine.decode_timing import time_forms
from m40llm.engine.engine import Engine
from m40llm.gguf import GGUFFile
from m40llm.hub import cache_dir
from m40llm.progress import Progress

Key = dict[str, Any]


def decode_form(
    wanted: DecodeChoice | None, engine: Engine, file: GGUFFile, progress: Progress | None = None
) -> DecodeForm:
    """The form that a choice stands for; None is "auto" on a card, and "host" elsewhere.

    "auto" is the fastest form that works: "host" where the device has no decoder.
    """
    if wanted is None:
        wanted = "auto" if engine.model.ops.name.startswith("cuda") else "host"
    if wanted != "auto":
        return wanted
    try:
        decoder = engine.model.decoder
    except Exception:  # no memory left for it, say: the model itself still runs
        return "host"
    if isinstance(decoder, str):
        return "host"
    key = key_of(engine, decoder.device, file)
    path = cache_dir() / "decode" / f"{_digest(json.dumps(key, sort_keys=True).encode())}.json"
    if known := remembered(path, key, ("host", *decoder.forms)):
        return known
    ms = time_forms(engine, decoder.forms, progress)
    if ms is None:
        return "host"
    # Where a form has broken the card, the next load must not try it again.
    form = fastest(ms, engine.model.kv.n_seqs)
    remember(path, {"key": key, "form": form, "ms_per_token": ms})
    return form


def fastest(ms: dict[DecodeForm, float], n_seqs: int) -> DecodeForm:
    """The form of the fewest milliseconds. The host's loop makes one row where the device makes one
    of each sequence: with several of them it is for want of others only."""
    compared = {form: t for form, t in ms.items() if n_seqs == 1 or form != "host"}
    return min(compared, key=compared.__getitem__, default="host")


def key_of(engine: Engine, device: str, file: GGUFFile) -> Key:
    """All that the fastest form depends on: of the weights, their types and not their values."""
    model = engine.model
    types = Counter(tensor.type.name for tensor in file.tensors.values())
    return {
        "device": device,
        "m40llm": f"{__version__}, {code_digest()}",
        "hparams": str(model.hp),
        "tensors": dict(sorted(types.items())),
        "max_seq_len": model.kv.max_seq_len,
        "n_seqs": model.kv.n_seqs,
    }


def remembered(path: Path, key: Key, forms: tuple[DecodeForm, ...]) -> DecodeForm | None:
    """The form that was chosen before; None where that is not known, or the file is damaged."""
    try:
        entry = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or entry.get("key") != key:
        return None
    return next((form for form in forms if form == entry.get("form")), None)


def remember(path: Path, entry: dict[str, Any]) -> None:
    """A reader sees all of it or nothing; a full or read-only disk is no error."""
    write_whole(path, json.dumps(entry, indent=1).encode())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:40]
