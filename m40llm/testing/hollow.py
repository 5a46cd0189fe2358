"""Model files of real shapes that hold no weights: for what looks at shapes and types alone."""

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as GGMLType
from gguf import GGUFWriter

from m40llm.gguf.blocks import row_bytes
from m40llm.model.arch import ARCHITECTURES, tensor_specs
from m40llm.model.hparams import HParams


def write_hollow_gguf(path: Path, hp: HParams, kind: GGMLType) -> Path:
    """A file of this shape, its matrices of this type: all is there but the weights."""
    writer, arch = GGUFWriter(path, hp.arch), hp.arch
    for key, value in {
        "context_length": hp.context_length,
        "block_count": hp.n_layers,
        "embedding_length": hp.n_embd,
        "feed_forward_length": hp.n_ff,
        "attention.head_count": hp.n_heads,
        "attention.head_count_kv": hp.n_kv_heads,
        "vocab_size": hp.vocab_size,
    }.items():
        writer.add_uint32(f"{arch}.{key}", value)
    writer.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", hp.norm_eps)
    writer.add_float32(f"{arch}.rope.freq_base", hp.rope.theta)
    n_bytes = 0
    for spec in tensor_specs(ARCHITECTURES[arch], hp):
        if spec.is_optional and spec.name != "output.weight":
            continue
        type_ = kind if len(spec.shape) > 1 else GGMLType.F32
        size_ = int(np.prod(spec.shape[:-1])) * row_bytes(type_, spec.shape[-1])
        writer.add_tensor_info(spec.name, spec.shape, np.dtype(np.float32), size_, raw_dtype=type_)
        n_bytes += GGUFWriter.ggml_pad(size_, 32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:  # a hole, which takes no room on the disk
        file.truncate(GGUFWriter.ggml_pad(path.stat().st_size, 32) + n_bytes)
    return path
