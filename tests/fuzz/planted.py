"""Test copies of kernels with one line changed, each a classic bug; the source on disk is real."""

import importlib.util
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

ROOM = "m40llm.kernels"


@dataclass(frozen=True)
class Bug:
    """One line of module `home` changed; `module`, copied too, is what the target calls."""

    target: str
    module: str
    home: str
    line: str
    instead: str


BUGS = {
    "missing barrier": Bug(
        "gemm", "gemm", "gemm_steps",
        "sync()\n\n    return add_steps", "pass\n\n    return add_steps",
    ),
    "off-by-one tail": Bug(
        "swiglu", "swiglu", "swiglu",
        "in range(first, gate.size):", "in range(first, gate.size - 1):",
    ),
    "wrong mask": Bug(
        "attention_prefill",
        "attention_prefill",
        "attention_tiles",
        "if key > last or key <= last - window:",
        "if key > last or key < last - window:",
    ),
    "FP64 literal": Bug("softmax", "softmax", "softmax", "total = float32(0.0)", "total = 0.0"),
    "uninitialised shared memory": Bug(
        "top_k", "top_k", "order", "bins[bin_] = int64(0)", "pass"
    ),
    "out-of-bounds row": Bug(
        "gemv",
        "gemv",
        "gemv",
        "row = min(int64(first_row + r % n_results), n_out - 1)",
        "row = int64(first_row + r % n_results)",
    ),
    "wrong group index": Bug(
        "attention_decode",
        "attention_decode",
        "attention_decode",
        "row = (int64(seq[token]) * k_cache.shape[1] + kv_head) * k_cache.shape[2]",
        "row = (int64(seq[token]) * k_cache.shape[1] + cuda.blockIdx.y) * k_cache.shape[2]",
    ),
    "lost residual": Bug("gemv", "gemv", "warp_rows", "result += out[token, row]", "pass"),
    # Splits are added in an order that depends on which block comes last: right within any bound.
    "non-associative race": Bug(
        "attention_decode",
        "attention_decode",
        "attention_merge",
        "mix += weight * partial[token, first_head + tile_head, split, d]",
        "at = (split + cuda.blockIdx.x) % n_splits; weight = weights[tile_head * MAX_SPLITS + at]; "
        "mix += weight * partial[token, first_head + tile_head, at, d]",
    ),
    "stale cache row": Bug(
        "attention_decode", "attention_decode", "attention_decode", "end = pos[token] + 1",
        "end = pos[token] + 2",
    ),
    "wrong norm of keys": Bug(
        "program_attention",
        "program.attend",
        "program.attend_query",
        "w[words.Q_NORM if is_query else words.K_NORM]",
        "w[words.Q_NORM]",
    ),
    "mean square without an element": Bug(
        "program_attention",
        "program.attend",
        "program.attend_query",
        "share += (x0 * x0 + x1 * x1) + (x2 * x2 + x3 * x3)",
        "share += (x0 * x0 + x1 * x1) + x2 * x2",
    ),
    "norm of another sequence": Bug(
        "program_add_normed",
        "program.add_normed",
        "program.add_normed",
        "total += squares[uint32(s * N_WARPS + warp)]",
        "total += squares[uint32(warp)]",
    ),
    "mask bit order": Bug(
        "program_mask", "program.mask", "program.mask",
        ">> uint32(row & 31)) & uint32(1):", ">> uint32(31 - (row & 31))) & uint32(1):",
    ),
    "wrong expert": Bug(
        "gemv_experts", "gemv_experts", "gemv_experts", "expert = ids[slot]",
        "expert = ids[slot // x_slots]",
    ),
}  # fmt: skip


@cache
def planted(name: str, folder: Path) -> Any:
    """The module with the bug; real ones for the rest. Written to `folder`, whose path must stay
    the same between runs for compiled code to be found in the cache."""
    bug = BUGS[name]
    stem = name.replace(" ", "_").replace("-", "_")
    source = _source(bug.home)
    assert source.count(bug.line) == 1, f"{bug.home}: {bug.line!r} is not there once"
    with ExitStack() as stack:
        copy = _loaded(source.replace(bug.line, bug.instead), folder / f"{stem}_{bug.home}.py")
        if bug.home == bug.module:
            return copy
        stack.enter_context(mock.patch.dict(sys.modules, {f"{ROOM}.{bug.home}": copy}))
        return _loaded(_source(bug.module), folder / f"{stem}_{bug.module}.py")


def _source(module: str) -> str:
    return Path(str(import_module(f"{ROOM}.{module}").__file__)).read_text(encoding="utf-8")


def _loaded(source: str, path: Path) -> ModuleType:
    if not path.is_file() or path.read_text(encoding="utf-8") != source:
        path.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(f"planted_{path.stem}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
