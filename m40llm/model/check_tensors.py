"""Whether a file has the tensors that its architecture wants, before any is read."""

from m40llm.errors import ModelFileError, UnsupportedModelError
from m40llm.gguf import GGUFFile, TensorInfo
from m40llm.gguf.blocks import can_dequantize
from m40llm.model.arch import Architecture, TensorSpec, tensor_specs
from m40llm.model.hparams import HParams

# Old converters stored what the model computes anyway.
_DERIVED = {"rope_freqs.weight", "attn_rot_embd.weight", "attn.rotary_emb.inv_freq"}


def check_tensors(file: GGUFFile, arch: Architecture, hp: HParams) -> None:
    """Every tensor is there, of the right shape and of a type that can be read; no other is.

    Raises ModelFileError naming the tensor; UnsupportedModelError for one that the architecture
    does not know, since leaving it out would answer wrongly.
    """
    specs = {spec.name: spec for spec in tensor_specs(arch, hp)}
    for spec in specs.values():
        info = file.tensors.get(spec.name)
        if info is not None:
            _check_tensor(info, spec)
        elif not spec.is_optional:
            raise ModelFileError(f"tensor {spec.name}: missing; expected {list(spec.shape)}")
    for name in file.tensors:
        if name not in specs and not any(name.endswith(derived) for derived in _DERIVED):
            raise UnsupportedModelError(
                f"tensor {name}: not part of a plain {arch.name} model; "
                "this version would answer wrongly without it"
            )


def _check_tensor(info: TensorInfo, spec: TensorSpec) -> None:
    if info.shape != spec.shape:
        hint = ": it is transposed" if info.shape == spec.shape[::-1] else ""
        raise ModelFileError(
            f"tensor {info.name}: expected shape {list(spec.shape)}, "
            f"got {list(info.shape)}{hint} (outermost dimension first)"
        )
    if not can_dequantize(info.type):
        raise UnsupportedModelError(f"tensor {info.name}: type {info.type.name} cannot be read")
