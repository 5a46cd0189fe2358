"""A launch that fails, anywhere in a forward, costs the request it was for and no other."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m40llm import LLM, SamplingParams
from m40llm.device.emulator.card import EmulatedCard
from m40llm.device.gpu.ops import GpuOps
from m40llm.errors import DeviceError
from m40llm.kernels.gemm import workspace_floats
from m40llm.testing import write_tiny_gguf

PARAMS = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
# Of more tokens than one split of decode's attention has: so its counts are used.
PROMPT = [1, *range(20, 90)]
OTHER = [*PROMPT[:40], *range(120, 150)]  # shares a prefix with PROMPT, not to be believed


class FailingCard(EmulatedCard):
    """Its n-th call from now on fails; `what` of launch, alloc, read and write."""

    def __init__(self) -> None:
        super().__init__(checks=False)
        self.what, self.n_left = "launch", -1

    def fail(self, what: str, n: int) -> None:
        self.what, self.n_left = what, n

    def _count(self, what: str) -> None:
        if what == self.what and self.n_left >= 0:
            self.n_left -= 1
            if self.n_left < 0:
                raise DeviceError(f"{what}: unspecified failure; 0.0 MB free")

    def launch(self, *args: Any, **options: Any) -> None:
        self._count("launch")
        super().launch(*args, **options)

    def read(self, buffer: Any) -> Any:
        self._count("read")
        return super().read(buffer)

    def write(self, buffer: Any, values: Any) -> None:
        self._count("write")
        super().write(buffer, values)

    def alloc(self, shape: tuple[int, ...], dtype: Any) -> Any:
        self._count("alloc")
        return super().alloc(shape, dtype)


@pytest.fixture(scope="module")
def card() -> FailingCard:
    return FailingCard()


@pytest.fixture(scope="module")
def llm(card: FailingCard, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = write_tiny_gguf(
        tmp_path_factory.mktemp("m") / "tiny.gguf", head_dim=64, context_length=256
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("m40llm.device._open_emulator", lambda: GpuOps(card))
        yield LLM.load(path, device="emulator")


@pytest.fixture(scope="module")
def expected(llm: LLM) -> list[int]:
    return llm.generate(OTHER, PARAMS).ids


def as_a_kernel_that_was_broken_off(llm: LLM) -> None:
    """Counts half made, and not-a-number in every activation."""
    engine = llm._open_engine()
    ops, workspace = engine.model.ops, engine.model.workspace
    assert isinstance(ops, GpuOps)
    assert ops._workspaces, "a context of several splits has counts"
    for partial, arrived in ops._workspaces.values():
        assert partial.shape[2] > 1
        ops.write(partial, np.full(partial.shape, np.nan, np.float32))
        ops.write(arrived, np.ones(arrived.shape, np.int32))
    for buffer in workspace._wide.values():
        ops.write(buffer, np.full(buffer.shape, np.nan, np.float32))


@pytest.mark.parametrize(
    ("what", "n"),
    [
        *(("launch", n) for n in (0, 6, 17, 27, 28, 34, 60)),  # 28 a forward: prefill, decode, ...
        ("read", 0),
        ("read", 2),
        ("write", 1),
        ("write", 6),
    ],
)
def test_the_next_request_is_answered_as_ever(
    llm: LLM, card: FailingCard, expected: list[int], what: str, n: int
) -> None:
    card.fail(what, n)
    with pytest.raises(DeviceError, match=f"{what}: unspecified failure"):
        llm.generate(PROMPT, PARAMS)
    as_a_kernel_that_was_broken_off(llm)
    assert llm.generate(OTHER, PARAMS).ids == expected


def test_a_conversation_goes_on_from_nothing_believed(
    llm: LLM, card: FailingCard, expected: list[int]
) -> None:
    """The cache of the failed request is not reused, whatever prefix the next one shares."""
    card.fail("launch", 40)
    with pytest.raises(DeviceError):
        llm.generate(PROMPT, PARAMS)
    engine = llm._open_engine()
    engine.model.ops.write(engine.model.kv.k, np.full(engine.model.kv.k.shape, 6e4, np.float16))
    steps = engine.generate(OTHER, PARAMS, reuse_prefix=True)
    assert [step.token.token_id for step in steps] == expected


def test_a_recovery_that_fails_is_tried_again(
    llm: LLM, card: FailingCard, expected: list[int]
) -> None:
    card.fail("launch", 34)
    with pytest.raises(DeviceError):
        llm.generate(PROMPT, PARAMS)
    as_a_kernel_that_was_broken_off(llm)
    card.fail("write", 0)
    with pytest.raises(DeviceError, match="write: unspecified failure"):
        llm.generate(OTHER, PARAMS)
    assert llm.generate(OTHER, PARAMS).ids == expected


def test_logits_after_a_failure(llm: LLM, card: FailingCard) -> None:
    whole = llm.logits(OTHER)
    card.fail("launch", 5)
    with pytest.raises(DeviceError):
        llm.logits(PROMPT)
    as_a_kernel_that_was_broken_off(llm)
    np.testing.assert_array_equal(llm.logits(OTHER), whole)


def test_memory_that_runs_out_in_the_midst(tmp_path: Path) -> None:
    """The partial results of a batch of a new size: allocated in the first forward that has it."""
    card = FailingCard()
    path = write_tiny_gguf(tmp_path / "tiny.gguf", head_dim=64, context_length=256)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("m40llm.device._open_emulator", lambda: GpuOps(card))
        llm = LLM.load(path, device="emulator")
    for n in (0, 1):  # partial, arrived
        card.fail("alloc", n)
        with pytest.raises(DeviceError, match="alloc: unspecified failure"):
            llm.generate(PROMPT, PARAMS)
    with LLM.load(path, device="emulator") as undisturbed:
        assert llm.generate(PROMPT, PARAMS).ids == undisturbed.generate(PROMPT, PARAMS).ids


def test_a_model_that_does_not_fit_is_refused_before_anything_is_uploaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", head_dim=64, context_length=2048)
    card = FailingCard()
    for method in ("alloc", "upload", "launch", "write"):
        monkeypatch.setattr(card, method, lambda *args, **options: pytest.fail("touched"))
    monkeypatch.setattr("m40llm.device._open_emulator", lambda: GpuOps(card))
    figures = r"needs .*weights .*cache .* for {} tokens.*; device 'emulator' has {} free; {}"
    shared = 2 * 4 * workspace_floats(card.n_sms)  # what matrix products will take
    monkeypatch.setattr(card, "free_bytes", lambda: shared + 100_000)
    with pytest.raises(DeviceError, match=figures.format(256, "0.1 MB", "a smaller quantisation")):
        LLM.load(path, device="emulator")
    monkeypatch.setattr(card, "free_bytes", lambda: shared + 2_500_000)
    helps = r"a smaller max_seq_len \(--max-seq-len\)"
    with pytest.raises(DeviceError, match=figures.format(2048, "2.5 MB", helps)):
        LLM.load(path, device="emulator", max_seq_len=2048)
