"""A file's model on any ops."""

from pathlib import Path

from m40llm.device.ops import Ops
from m40llm.gguf import open_gguf
from m40llm.model.arch import architecture_of
from m40llm.model.check_tensors import check_tensors
from m40llm.model.hparams import HParams
from m40llm.model.kv_cache import KVType
from m40llm.model.transformer import Transformer
from m40llm.model.weights import load_weights, rope_factors


def build(
    path: Path, ops: Ops, n_seqs: int = 1, max_tokens: int = 64, kv_type: KVType = "f16"
) -> Transformer:
    """The file's model on these ops, with room for `max_tokens` rows and as many logits."""
    with open_gguf(path) as file:
        arch, hp = architecture_of(file), HParams.from_gguf(file)
        check_tensors(file, arch, hp)
        return Transformer(
            ops,
            arch,
            hp,
            load_weights(ops, file, arch, hp),
            n_seqs=n_seqs,
            max_seq_len=hp.context_length,
            max_tokens=max_tokens,
            max_logits=max_tokens,
            freq_factors=rope_factors(file, hp, hp.context_length),
            kv_type=kv_type,
        )
