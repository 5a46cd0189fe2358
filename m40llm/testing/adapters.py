"""Random LoRA adapters in GGUF files, as llama.cpp's convert_lora_to_gguf.py writes them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter

from m40llm.gguf import open_gguf


def write_adapter(
    path: str | Path,
    model: Path,
    matrices: Sequence[str],
    *,
    rank: int = 3,
    alpha: float = 6.0,
    dtype: Any = np.float32,
    seed: int = 0,
    keys: Mapping[str, Sequence[int]] | None = None,
) -> Path:
    """An adapter of these tensors of a model file ("blk.0.attn_q.weight", ...), whose effect is
    about as large as the weights'."""
    with open_gguf(model) as file:
        arch = file.metadata.get_str("general.architecture")
        shapes = {name: file.tensors[name].shape for name in matrices}
    writer = GGUFWriter(Path(path), arch)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    for key, values in (keys or {}).items():
        writer.add_array(key, values)
    rng = np.random.default_rng(seed)
    for name, (n_rows, n_cols) in shapes.items():
        a = rng.normal(0, n_cols**-0.5, (rank, n_cols))
        b = rng.normal(0, 0.5, (n_rows, rank))
        writer.add_tensor(f"{name}.lora_a", a.astype(dtype))
        writer.add_tensor(f"{name}.lora_b", b.astype(dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)
