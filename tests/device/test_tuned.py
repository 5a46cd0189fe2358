"""Tiles that were measured on a card: kept on disk, found again, and never trusted when broken."""

from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as GGMLType

from m40llm.device.gpu.tuned import Tuned
from m40llm.kernels.gemm_choice import Choice
from m40llm.kernels.gemm_tiles import Tile

F16 = GGMLType.F16
WIDE, NARROW = Choice(Tile(128, 128), 2), Choice(Tile(32, 64, 4), 3)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M40LLM_HOME", str(tmp_path))


def kept() -> Tuned:
    tuned = Tuned("a card")
    tuned.set(F16, 2048, 512, 32, NARROW)
    tuned.set(F16, 2048, 512, 512, WIDE)
    tuned.save()
    return tuned


def test_another_process_finds_them() -> None:
    kept()
    found = Tuned("a card")
    assert len(found) == 2
    assert found.choice(F16, 2048, 512, 512) == WIDE
    assert found.choice(F16, 2048, 512, 32) == NARROW


def test_fewer_tokens_take_the_choice_of_the_next_more() -> None:
    tuned = kept()
    assert tuned.choice(F16, 2048, 512, 9) == NARROW
    assert tuned.choice(F16, 2048, 512, 33) == WIDE
    assert tuned.choice(F16, 2048, 512, 513) is None


def test_other_matrices_cards_and_types_have_none() -> None:
    tuned = kept()
    assert tuned.choice(F16, 2048, 520, 32) is None
    assert tuned.choice(GGMLType.Q8_0, 2048, 512, 32) is None
    assert len(Tuned("another card")) == 0


@pytest.mark.parametrize("damage", [b"", b"\n\n", b"x" * 100, None])
def test_a_broken_file_counts_as_nothing(damage: bytes | None) -> None:
    path = kept().path
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"128", b"129") if damage is None else damage)
    assert len(Tuned("a card")) == 0


def test_a_folder_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("M40LLM_HOME", str(tmp_path / "file"))
    assert kept().choice(F16, 2048, 512, 32) == NARROW
    assert len(Tuned("a card")) == 0
