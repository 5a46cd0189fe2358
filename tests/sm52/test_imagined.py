"""An imagined card is launched on as a card is, and its work is counted by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m40llm.device.emulator.card import EmulatedCard
from m40llm.device.gpu.compiler import argument_type
from m40llm.device.gpu.ops import GpuOps
from m40llm.gguf import GGUFFile, open_gguf
from m40llm.llm.cards import on_cards
from m40llm.model.arch import architecture_of
from m40llm.model.batch import Batch
from m40llm.model.hparams import HParams
from m40llm.model.part import Part
from m40llm.model.transformer import Transformer
from m40llm.model.weights import load_weights
from m40llm.sm52.cards import CARDS
from m40llm.sm52.experts import even_choice
from m40llm.sm52.imagined import ImaginedCard, Launch
from m40llm.sm52.steps import ImaginedModel, Step
from m40llm.sm52.work import Work
from m40llm.testing import write_tiny_gguf

CARD = replace(CARDS["m40-12"], n_sms=EmulatedCard.n_sms)
N_LAYERS, N_EMBD, N_FF, N_HEADS, N_KV_HEADS, HEAD_DIM, VOCAB = 2, 64, 256, 4, 2, 32, 512
Q_DIM, KEY_BYTES = N_HEADS * HEAD_DIM, 2 * 2 * N_KV_HEADS * HEAD_DIM  # of a token's K and V


class NotingCard(EmulatedCard):
    """Has memory, and notes launches instead of running them."""

    def __init__(self) -> None:
        super().__init__(checks=False)
        self.noted: list[tuple[Any, ...]] = []

    def launch(self, kernel: Any, grid: Any, block: Any, *args: Any, shared_bytes: int = 0) -> None:
        sizes = tuple(np.atleast_1d(grid).tolist())
        types = tuple(map(argument_type, args))
        self.noted.append((kernel, types, sizes, int(np.prod(block)), shared_bytes))
        if kernel.name == "choose_experts_kernel":
            logits, *_, ids, _ = args
            ids[:] = even_choice(len(ids), logits.shape[1])


ENDS = {"begin_step", "survey_logits", "end_step"}  # of a decode step, which no `forward` has


def as_noted(launches: list[Launch]) -> list[tuple[Any, ...]]:
    return [
        (a.kernel, a.arg_types, a.grid, a.n_threads, a.shared_bytes)
        for a in launches
        if a.kernel.name not in ENDS
    ]


def imagined(file: GGUFFile, **how: Any) -> ImaginedModel:
    arch, hp = architecture_of(file), HParams.from_gguf(file)
    (plan,) = on_cards(file, hp, {CARD.title: CARD.free})
    return ImaginedModel(CARD, file, arch, hp, replace(plan.best, **how))


@pytest.mark.parametrize("arch", ["llama", "qwen3", "gemma2", "phi3", "mixtral", "qwen3moe"])
@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_what_is_launched(arch: str, kv_type: Any, tmp_path: Path) -> None:
    """Kernels, types, grids and blocks, in the order of a card that has memory."""
    path = write_tiny_gguf(tmp_path / "tiny.gguf", arch=arch, tensor_type="Q8_0", head_dim=32)
    with open_gguf(path) as file:
        hp, of_arch = HParams.from_gguf(file), architecture_of(file)
        ours = imagined(file, kv_type=kv_type)
        ops = GpuOps(card := NotingCard())
        theirs = Transformer(
            *(ops, of_arch, hp, load_weights(ops, file, of_arch, hp)),
            n_seqs=1,
            max_seq_len=ours.plan.max_seq_len,
            max_tokens=ours.plan.max_tokens,
            max_logits=ours.plan.max_logits,
            kv_type=kv_type,
        )
        for step, batch in (
            (ours.decode, Batch.decode([(0, 20, 0)], 1)),
            (ours.prefill, Batch.of((0, 0, [0] * 20))),
        ):
            card.noted.clear()
            step(20)
            theirs.forward(batch)
            assert as_noted(ours.card.launches) == card.noted


def by_name(step: Step) -> dict[str, tuple[int, Work]]:
    """The launches of each kernel and operand: how many, and the work of one."""
    return {
        f"{launch.kernel.name} {launch.operand}".strip(): (count, launch.work)
        for launch, count in step.launches.items()
    }


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    heads = {"n_heads": N_HEADS, "n_kv_heads": N_KV_HEADS, "head_dim": HEAD_DIM}
    shape = {"n_layers": N_LAYERS, "n_embd": N_EMBD, "n_ff": N_FF, "vocab_size": VOCAB}
    return write_tiny_gguf(tmp_path / "tiny.gguf", tensor_type="F16", **shape, **heads)


def test_work_of_a_decode_step(tiny: Path) -> None:
    """Each weight once, the keys and values of what is in the cache; behind 99 tokens here."""
    with open_gguf(tiny) as file:
        found = by_name(imagined(file).decode(99))
    vector, q_bytes = 4 * N_EMBD, 4 * Q_DIM
    gate = Work(2 * N_FF * N_EMBD + vector + 4 * N_FF, 2 * N_FF * N_EMBD)
    assert found[f"gemv F16 {N_FF} x {N_EMBD}"] == (2 * N_LAYERS, gate)
    output = Work(2 * VOCAB * N_EMBD + vector + 4 * VOCAB, 2 * VOCAB * N_EMBD)
    assert found[f"gemv F16 {VOCAB} x {N_EMBD}"] == (1, output)
    attention = Work(2 * q_bytes + 100 * KEY_BYTES, 4 * Q_DIM * 100)
    assert found["attention_decode"] == (N_LAYERS, attention)
    assert found["rms_norm_kernel"] == (2 * N_LAYERS + 1, Work(3 * vector))
    assert found["embedding_kernel"] == (1, Work(vector + 2 * N_EMBD + 4))
    new, angles = 2 * KEY_BYTES + KEY_BYTES, 2 * 4 * HEAD_DIM // 2  # in FP32, then in F16
    assert found["rope_append_kernel"] == (N_LAYERS, Work(2 * q_bytes + new + angles))
    assert found["gated_activation"] == (N_LAYERS, Work(3 * 4 * N_FF))


def test_work_of_a_prefill_in_chunks(tiny: Path) -> None:
    """The second chunk sees the first one's keys; rows see themselves and what is before them."""
    with open_gguf(tiny) as file:
        model = imagined(file, max_tokens=64)
        step = model.prefill(100)
    attention = [a for a in model.card.launches if a.kernel.name == "attention_prefill"]
    of_pair = 4 * Q_DIM  # bytes of q, and FLOPs with a key
    assert [a.work for a in attention[::N_LAYERS]] == [
        Work(2 * 64 * of_pair + 64 * KEY_BYTES, of_pair * sum(range(1, 65)), 64 / 32.5),
        Work(2 * 36 * of_pair + 100 * KEY_BYTES, of_pair * sum(range(65, 101)), 100 / 82.5),
    ]
    assert step.n_tokens == 100
    n_rows = 2 * Q_DIM + 2 * N_KV_HEADS * HEAD_DIM + 3 * N_FF  # of all matrices, or columns
    n_products = 2 * n_rows * N_EMBD * N_LAYERS
    logits = 2 * VOCAB * N_EMBD  # of the last token alone
    total = sum(n * a.work.n_flops for a, n in step.launches.items() if "gem" in a.kernel.name)
    assert total == 100 * n_products + logits


def write_experts(path: Path) -> Path:
    """Eight of them, of which a token gets two."""
    shape = {"n_layers": N_LAYERS, "n_embd": N_EMBD, "n_ff": N_FF, "vocab_size": VOCAB}
    return write_tiny_gguf(path, arch="mixtral", tensor_type="F16", **shape)


def test_work_with_experts_in_a_decode_step(tmp_path: Path) -> None:
    """Two of eight are read; gate and up in one launch."""
    with open_gguf(write_experts(tmp_path / "tiny.gguf")) as file:
        found = by_name(imagined(file).decode(99))
    ids, x, of_slots = 2 * 4, 4 * N_EMBD, 2 * 4 * N_FF
    gate_up = Work(2 * 2 * 2 * N_FF * N_EMBD + x + ids + of_slots, 2 * 2 * 2 * N_FF * N_EMBD)
    assert found[f"gemv_experts F16 {2 * N_FF} x {N_EMBD}, 2 of 8"] == (N_LAYERS, gate_up)
    down = Work(2 * 2 * N_FF * N_EMBD + of_slots + ids + 2 * x, 2 * 2 * N_FF * N_EMBD)
    assert found[f"gemv_experts F16 {N_EMBD} x {N_FF}, 2 of 8"] == (N_LAYERS, down)
    assert found["add_shares_kernel"] == (N_LAYERS, Work(2 * x + 2 * 4 + 2 * x))


def test_work_with_experts_in_a_prefill(tmp_path: Path) -> None:
    """Each expert once, with a quarter of the rows: two slots a row for eight experts."""
    with open_gguf(write_experts(tmp_path / "tiny.gguf")) as file:
        step = imagined(file, max_tokens=128).prefill(100)
    products = [
        (launch, count) for launch, count in step.launches.items() if "gem" in launch.kernel.name
    ]
    of_experts = [(a, n) for a, n in products if f"{N_FF}" in a.operand and a.kernel.name == "gemm"]
    assert sum(n for _, n in of_experts) == N_LAYERS * 8 * 3
    assert sum(n * a.work.n_flops for a, n in of_experts) == N_LAYERS * 200 * 3 * 2 * N_FF * N_EMBD
    added = by_name(step)["add_rows_kernel"]
    assert added == (N_LAYERS * 8, Work(25 * (3 * 4 * N_EMBD + 4 + 4)))


def test_an_even_choice() -> None:
    assert even_choice(6, 4).tolist() == [0, 1, 2, 3, 0, 1]
    assert np.bincount(even_choice(512 * 2, 8)).tolist() == [128] * 8


def test_the_ends_of_a_decode_step(tiny: Path) -> None:
    """Commands first; last the token, of logits that are read once and kept."""
    with open_gguf(tiny) as file:
        model = imagined(file)
        model.decode(99)
    first, *_, survey, last = model.card.launches
    assert [a.kernel.name for a in (first, survey, last)] == ["begin_step", *sorted(ENDS)[:0:-1]]
    assert survey.work == Work(2 * 4 * VOCAB)
    assert last.n_blocks == 1


def test_layers_of_a_part(tiny: Path) -> None:
    """The last layer alone: no embedding, half of the layers' launches, the logits."""
    with open_gguf(tiny) as file:
        whole = imagined(file)
        (share,) = whole.plan.shares
        last = replace(share, part=Part(1, N_LAYERS, N_LAYERS))
        part = imagined(file, shares=(replace(share, device="cpu"), last))
        for step, n in ((part.decode(99), 1), (part.prefill(20), 1)):
            names = {a.kernel.name.removesuffix("_kernel") for a in step.launches}
            assert "embedding" not in names
            found = by_name(step)
            assert found[next(a for a in found if a.startswith("rope_append"))][0] == n
            assert f"gemv F16 {VOCAB} x {N_EMBD}" in found


def test_addresses_do_not_overlap() -> None:
    card = ImaginedCard(CARD)
    first, second = card.alloc((3, 5), np.float32), card.alloc((1,), np.int32)
    assert second.address >= first.address + first.nbytes
    assert first[1].address == first.address + 20
