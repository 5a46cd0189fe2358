"""Layers on the device and the others on the CPU: the same answers for every number of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m40llm import LLM, SamplingParams
from m40llm.device.cpu.ops import CpuOps
from m40llm.device.gpu.ops import GpuOps
from m40llm.engine.speculate import MAX_PROPOSALS
from m40llm.errors import DeviceError, RequestError
from m40llm.gguf import open_gguf
from m40llm.model.arch import architecture_of
from m40llm.model.batch import Batch
from m40llm.model.hparams import HParams
from m40llm.model.transformer import Transformer
from m40llm.model.weights import load_weights
from m40llm.testing import write_tiny_gguf
from m40llm.testing.adapters import write_adapter
from m40llm.testing.greedy import assert_same_greedy
from m40llm.testing.noisy_ops import NoisyOps
from m40llm.testing.reference_ops import ReferenceOps

N_LAYERS = 3
IDS = np.random.default_rng(2).integers(0, 250, 20).tolist()
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
DEVICES = [pytest.param("emulator"), pytest.param("cuda", marks=pytest.mark.gpu)]
Load = Callable[..., LLM]


class NoisyHalfCache(NoisyOps):
    """With what rounding to FP16 may do to keys and values: 2^-11 of each, 2^-25 at least."""

    def rope_append(
        self, q: Any, k: Any, v: Any, k_cache: Any, v_cache: Any, seq: Any, pos: Any, table: Any
    ) -> None:
        super().rope_append(q, k, v, k_cache, v_cache, seq, pos, table)
        for cache in (k_cache, v_cache):
            rows = cache[seq, :, pos]
            self._disturb(rows, 2.0**-11 * np.abs(rows) + 2.0**-25)
            cache[seq, :, pos] = rows


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("m")
    return write_tiny_gguf(folder / "tiny.gguf", n_layers=N_LAYERS, head_dim=64, context_length=128)


@pytest.fixture(scope="module")
def cpu(path: Path) -> Iterator[LLM]:
    with LLM.load(path, device="cpu") as llm:
        yield llm


@pytest.fixture(scope="module", params=DEVICES)
def load(request: pytest.FixtureRequest, path: Path) -> Load:
    """Loads the model with so many layers there."""
    return lambda n, **more: LLM.load(
        path, device=request.param, gpu_layers=n, **{"decode": "host", **more}
    )


@dataclass(frozen=True)
class Exact:
    """Of IDS in FP64, and how far FP32 with an FP16 cache may be from it."""

    logits: np.ndarray  # [n, vocab_size]
    vector: np.ndarray  # [n_embd]: the mean hidden state, of length 1
    largest: float  # of a logit
    largest_of_vector: float


@pytest.fixture(scope="module")
def exact(path: Path) -> Exact:
    def run(ops: Any) -> tuple[np.ndarray, np.ndarray]:
        with open_gguf(path) as file:
            arch, hp = architecture_of(file), HParams.from_gguf(file)
            weights = load_weights(ops, file, arch, hp)
        sizes = {"n_seqs": 1, "max_seq_len": 64, "max_tokens": 64, "max_logits": 64}
        model = Transformer(ops, arch, hp, weights, **sizes)
        logits = ops.read(model.forward(Batch.of((0, 0, IDS), logits="all")))
        mean = ops.read(model.hidden(Batch.of((0, 0, IDS), logits="none"))).mean(axis=0)
        return logits, mean / np.linalg.norm(mean)

    logits, vector = run(ReferenceOps())
    noisy = [run(NoisyHalfCache(seed)) for seed in range(4)]
    largest = 2 * max(float(np.abs(run[0] - logits).max()) for run in noisy)
    return Exact(logits, vector, largest, 2 * max(np.abs(run[1] - vector).max() for run in noisy))


@pytest.mark.parametrize("n", [*range(N_LAYERS + 1), "auto", "all"])
def test_same_results(n: Any, load: Load, cpu: LLM, exact: Exact) -> None:
    with load(n) as llm:
        assert np.abs(llm.logits(IDS) - exact.logits).max() <= exact.largest
        assert_same_greedy(llm, cpu, IDS, 24, gap=2 * exact.largest)
        n_there = N_LAYERS if n in ("auto", "all") else n
        assert (llm.device_name == "cpu") == (n_there == 0)
        told = f"{n_there or N_LAYERS} of {N_LAYERS} layers on {llm.device_name}"
        assert llm.plan.placement.startswith(told)


def test_none_there_is_the_cpu(load: Load, cpu: LLM) -> None:
    with load(0, decode=None) as llm:
        assert llm.device_name == "cpu"
        assert "no layer is on" in llm.device_reason
        np.testing.assert_array_equal(llm.logits(IDS), cpu.logits(IDS))
        assert llm.generate(IDS, GREEDY).ids == cpu.generate(IDS, GREEDY).ids


def test_each_device_has_its_weights_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loaded once; progress goes from the first layer to the last."""
    made: dict[str, int] = {"cpu": 0, "gpu": 0}

    def counting(cls: Any, name: str) -> None:
        matrix, stack = cls.matrix, cls.stack

        def counted(self: Any, *args: Any) -> Any:
            made[name] += 1
            return matrix(self, *args)

        def counted_stack(self: Any, parts: Any) -> Any:
            made[name] += len(parts) if name == "gpu" else 0  # cpu's makes matrices of them
            return stack(self, parts)

        monkeypatch.setattr(cls, "matrix", counted)
        monkeypatch.setattr(cls, "stack", counted_stack)

    counting(CpuOps, "cpu")
    counting(GpuOps, "gpu")
    told: list[float] = []

    def progress(stage: str, fraction: float) -> None:
        if stage == "loading weights":
            told.append(fraction)

    with LLM.load(path, device="emulator", gpu_layers=1, progress=progress):
        assert made == {"cpu": 1 + 2 * 7, "gpu": 7 + 1}
    assert told == pytest.approx([1 / 3, 2 / 3, 1])


def test_in_pieces_embeddings_and_chat(load: Load, cpu: LLM, exact: Exact) -> None:
    """Prompts longer than a forward takes; hidden states; what is cached is gone on from."""
    with load(1) as llm, pytest.MonkeyPatch.context() as patch:
        assert np.abs(llm.embed(IDS) - exact.vector).max() <= exact.largest_of_vector
        patch.setattr(llm.transformer.workspace, "max_tokens", 7)
        assert np.abs(llm.embed(IDS) - exact.vector).max() <= exact.largest_of_vector
        assert_same_greedy(llm, cpu, IDS, 6, gap=2 * exact.largest)
        steps = llm._open_engine().generate([*IDS, 5], GREEDY, reuse_prefix=True)
        again = [step.token.token_id for step in steps]
        assert again == llm.generate([*IDS, 5], GREEDY).ids


@pytest.mark.parametrize("speculate", ["ngram", "itself"])
def test_with_proposals(load: Load, path: Path, speculate: str) -> None:
    wanted = path if speculate == "itself" else speculate
    with load(2) as plain, load(2, speculate=wanted, decode=None) as llm:
        prompt = [1, *[40, 41, 42, 43] * 6]
        params = SamplingParams(
            temperature=0, max_tokens=12, ignore_eos=True, logit_bias=dict.fromkeys((40, 41), 20.0)
        )
        answer = llm.generate(prompt, params)
        assert answer.ids == plain.generate(prompt, params).ids
        assert 0 < answer.timings.proposed_tokens <= 12 * MAX_PROPOSALS


def test_with_an_adapter(load: Load, cpu: LLM, path: Path) -> None:
    tensors = [f"blk.{layer}.{m}.weight" for layer in range(3) for m in ("attn_v", "ffn_down")]
    adapter = write_adapter(path.with_name("a.gguf"), path, tensors)
    with load(2) as llm, LLM.load(path, device="cpu") as other:
        names = llm.load_lora(adapter), other.load_lora(adapter)
        got, wanted = (
            each.generate(IDS, GREEDY, lora=name).ids
            for each, name in zip((llm, other), names, strict=True)
        )
        assert got == wanted != cpu.generate(IDS, GREEDY).ids
        assert llm.generate(IDS, GREEDY).ids == cpu.generate(IDS, GREEDY).ids


def test_a_failed_forward_costs_one_request(load: Load, cpu: LLM) -> None:
    with load(1) as llm, pytest.MonkeyPatch.context() as patch:
        expected = llm.generate(IDS, GREEDY).ids
        patch.setattr(CpuOps, "swiglu", lambda *args, **how: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            llm.generate(IDS[::-1], GREEDY)
        patch.undo()
        assert llm.generate(IDS, GREEDY).ids == expected


@pytest.mark.parametrize("form", ["eager", "graph", "persistent"])
def test_the_device_decodes_no_split_model(form: str, path: Path) -> None:
    told = f"expected 'host' .* got '{form}': its layers are on two devices, 2 on cpu and 1 on emu"
    with pytest.raises(RequestError, match=told):
        LLM.load(path, device="emulator", gpu_layers=1, decode=form)
    with LLM.load(path, device="emulator", gpu_layers=1, decode="auto") as llm:
        assert llm.decode_form == "host"


@pytest.mark.parametrize("bad", [-1, "x", "3", 1.5, True, [1]])
def test_no_number_of_layers(bad: Any, path: Path) -> None:
    with pytest.raises(RequestError, match="gpu_layers: expected a number of layers from 0 on"):
        LLM.load(path, device="cpu", gpu_layers=bad)


def test_more_layers_than_there_are(path: Path) -> None:
    with pytest.raises(RequestError, match=r"gpu_layers: expected 0 to 3 .*, got 4"):
        LLM.load(path, device="emulator", gpu_layers=4)


def test_nothing_to_split_on_the_cpu(path: Path) -> None:
    with pytest.raises(RequestError, match=r"gpu_layers: expected a card .* got device 'cpu'"):
        LLM.load(path, device="cpu", gpu_layers=1)
    for n in (0, "auto", "all"):  # which mean what is there anyway
        with LLM.load(path, device="cpu", gpu_layers=n) as llm:
            assert llm.plan.placement == "3 of 3 layers on cpu"


def test_auto_on_the_cpu_does_not_count_its_memory_twice(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LLM.load(path, device="cpu", max_seq_len=64) as llm:
        total = llm.plan.total
    limited(monkeypatch, gpu=0, cpu=total - 1)
    with pytest.raises(DeviceError, match="the model needs"):
        LLM.load(path, device="cpu", max_seq_len=64, gpu_layers="auto")


def limited(patch: pytest.MonkeyPatch, gpu: int, cpu: int = 1 << 40) -> None:
    patch.setattr(GpuOps, "free_bytes", lambda self: gpu)
    patch.setattr(CpuOps, "free_bytes", lambda self: cpu)


def test_auto_fills_what_is_free(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many layers as fit beside a useful context, which here is the whole one."""
    found = []
    for gpu in range(200_000, 2_600_001, 200_000):
        limited(monkeypatch, gpu)
        with LLM.load(path, device="emulator", gpu_layers="auto") as llm:
            assert llm.max_seq_len == 128
            shares = {share.device: share for share in llm.plan.shares}
            if "emulator" in shares:
                assert shares["emulator"].total <= gpu
            found.append(len(shares["emulator"].part.layers) if "emulator" in shares else 0)
    assert found == sorted(found)
    assert set(found) == {0, 1, 2, 3}


def test_what_does_not_fit_says_how_many_layers_do(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(monkeypatch, 1_500_000)
    with pytest.raises(DeviceError, match=r"with gpu_layers=(\d) .* of 3 layers fit") as error:
        LLM.load(path, device="emulator")
    n = int(str(error.value).partition("gpu_layers=")[2][0])
    with LLM.load(path, device="emulator", gpu_layers=n) as llm:
        assert llm.plan.placement == f"{n} of 3 layers on emulator, {3 - n} on cpu"
    with pytest.raises(DeviceError, match=r"has 1\.5 MB free"):
        LLM.load(path, device="emulator", gpu_layers=3)
    limited(monkeypatch, 1_500_000, cpu=100_000)
    with pytest.raises(DeviceError, match=r"device 'cpu' has 0\.1 MB free; a smaller quant"):
        LLM.load(path, device="emulator", gpu_layers=n)


def test_a_draft_model_that_has_no_room(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LLM.load(path, device="emulator", gpu_layers=2) as llm:
        needed = llm.plan.shares[-1].total
    free = iter([needed, 100_000])
    monkeypatch.setattr(GpuOps, "free_bytes", lambda self: next(free))
    with pytest.raises(DeviceError, match="speculate: beside the model, the model needs") as error:
        LLM.load(path, device="emulator", gpu_layers=2, speculate=path)
    assert "--gpu-layers" not in str(error.value)  # they are the model's
    assert str(error.value).endswith("a smaller max_seq_len (in place of fit) or fewer gpu_layers")
