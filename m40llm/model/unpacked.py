"""Tensors that a device cannot read in the file's type, and what it costs to hold them unpacked."""

from dataclasses import dataclass

from m40llm.device.ops import Sizes
from m40llm.gguf import GGUFFile
from m40llm.model.part import Part
from m40llm.model.weights import tensors_of


@dataclass(frozen=True)
class Unpacked:
    """The tensors of one type; all bytes."""

    type_name: str
    n_tensors: int
    in_file: int
    held: int

    def __str__(self) -> str:
        return (
            f"{self.n_tensors} {self.type_name} tensors are unpacked: "
            f"{self.held / 1e6:,.1f} MB instead of {self.in_file / 1e6:,.1f} MB"
        )


def unpacked_tensors(sizes: Sizes, file: GGUFFile, part: Part) -> tuple[Unpacked, ...]:
    """Matrices of the part that take more memory on the device than in the file, by type."""
    found: dict[str, Unpacked] = {}
    for info in tensors_of(file, part):
        if len(info.shape) == 1:
            continue
        held = sizes.matrix_bytes(info.type, info.n_rows, info.shape[-1])
        if held > info.n_bytes:
            name = info.type.name
            so_far = found.get(name, Unpacked(name, 0, 0, 0))
            found[name] = Unpacked(
                name, so_far.n_tensors + 1, so_far.in_file + info.n_bytes, so_far.held + held
            )
    return tuple(found.values())
