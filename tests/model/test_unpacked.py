"""What a device cannot read as it lies in the file is told, with the memory that it costs."""

from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as GGMLType

from m40llm.device.cpu.ops import CpuOps
from m40llm.device.gpu import held
from m40llm.gguf import open_gguf
from m40llm.model.part import Part
from m40llm.model.unpacked import Unpacked, unpacked_tensors
from m40llm.testing import write_tiny_gguf


@pytest.mark.parametrize(("name", "n_held"), [("Q4_0", 0), ("F16", 0), ("TQ2_0", 4)])
def test_by_type_and_with_its_bytes(tmp_path: Path, name: str, n_held: int) -> None:
    """`n_held`: bytes a weight in the CPU's memory; 0: as in the file."""
    path = write_tiny_gguf(tmp_path / "tiny.gguf", tensor_type=name, n_embd=256, n_ff=256)
    with open_gguf(path) as file:
        matrices = [info for info in file.tensors.values() if len(info.shape) == 2]
        expected = Unpacked(
            name,
            len(matrices),
            sum(info.n_bytes for info in matrices),
            sum(n_held * info.n_elements for info in matrices),
        )
        assert unpacked_tensors(CpuOps(), file, Part.whole(2)) == ((expected,) if n_held else ())


def test_it_reads_as_a_sentence() -> None:
    told = str(Unpacked("IQ3_S", 5, 1_250_000, 2_000_000_000))
    assert told == "5 IQ3_S tensors are unpacked: 2,000.0 MB instead of 1.2 MB"


def test_cards_hold_unknown_types_in_f16_and_wide_ones_in_f32() -> None:
    assert held.held_matrix(GGMLType.IQ3_S, 256) == GGMLType.F16
    assert held.held_matrix(GGMLType.Q4_K, 256) == GGMLType.Q4_K
    assert held.held_matrix(GGMLType.BF16, 256) == GGMLType.F32
    assert held.held_matrix(GGMLType.F16, 12) == GGMLType.F32
    assert held.matrix_bytes(GGMLType.IQ3_S, 3, 256) == 3 * 512
    assert held.table_bytes(GGMLType.BF16, 3, 256, is_tied=False) == 3 * 512


def test_an_embedding_is_held_in_what_its_kernel_reads() -> None:
    quant_blocks = pytest.importorskip("m40llm.kernels.quant_blocks")
    types = list(GGMLType)
    assert {t for t in types if held.held_table(t) == t} == set(quant_blocks.WEIGHT_OF)
