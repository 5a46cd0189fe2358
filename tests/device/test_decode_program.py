"""The decode program of a model: the list itself, and each of its instructions against NumPy."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from m40llm import LLM
from m40llm.device.decoder import SlotRequest
from m40llm.device.instructions import AddNormed, Attend, Choose, Embed, Project, writers
from m40llm.engine.decode_step import decode
from m40llm.errors import KernelContractError
from m40llm.gguf import open_gguf
from m40llm.gguf.blocks import dequantize
from m40llm.kernels.program.run import run_once
from m40llm.model.program import decode_program
from m40llm.testing import write_tiny_gguf
from m40llm.testing.program_steps import ProgramSteps

GRANITE = {
    "granite.residual_scale": 0.5,
    "granite.embedding_scale": 2.0,
    "granite.logit_scale": 1.5,
}
DEVICES = [pytest.param("emulator"), pytest.param("cuda", marks=pytest.mark.gpu)]
MODELS: dict[str, dict[str, Any]] = {
    "Q8_0": {"tensor_type": "Q8_0"},
    "MXFP4": {"tensor_type": "MXFP4"},
    "qwen2 in F16": {"arch": "qwen2", "tensor_type": "F16"},
    "qwen3": {"arch": "qwen3", "tensor_type": "Q8_0"},
    # Of the types, and so the kernels, that test_gpu_models.py has.
    "gemma3": {"arch": "gemma3", "n_layers": 6, "metadata": {"gemma3.attention.sliding_window": 2}},
    "olmo2": {"arch": "olmo2"},
    "granite": {"arch": "granite", "metadata": GRANITE},
}
NAMES = (
    *("attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm"),
    *("attn_output", "ffn_down", "attn_q_norm", "attn_k_norm"),
)
U = 2.0**-24  # of a rounding to FP32
Doubles = NDArray[np.float64]


@pytest.fixture(scope="module", params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=MODELS)
def model(request: Any, device: str, tmp_path_factory: Any) -> Iterator[tuple[LLM, Path]]:
    path: Path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    write_tiny_gguf(path, head_dim=64, context_length=16, **MODELS[request.param])
    with LLM.load(path, device=device, decode="eager") as llm:
        yield llm, path


def host_weights(path: Path, n_layers: int) -> dict[str, Doubles]:
    """float64, by the names in a program."""
    file = open_gguf(path)

    def tensor(name: str) -> Doubles:
        info = file.tensors[name]
        values = dequantize(info.type, file.tensor_bytes(name))
        return np.asarray(values.reshape(info.shape), np.float64)

    found = {
        "token_embd": tensor("token_embd.weight"),
        "output_norm": tensor("output_norm.weight"),
        "output": tensor("output.weight"),
    }
    for layer in range(n_layers):
        at = f"blk.{layer}."
        for name in NAMES:
            if f"{at}{name}.weight" in file.tensors:
                found[at + name] = tensor(f"{at}{name}.weight")
        parts = [tensor(f"{at}attn_{part}.weight") for part in "qkv"]
        found[at + "attn_qkv.0"] = np.concatenate(parts)
        if f"{at}attn_q.bias" in file.tensors:
            biases = [tensor(f"{at}attn_{part}.bias") for part in "qkv"]
            found[at + "attn_qkv_bias.0"] = np.concatenate(biases)
        gate_up = [tensor(f"{at}ffn_{part}.weight") for part in ("gate", "up")]
        found[at + "ffn_gate_up"] = np.concatenate(gate_up)
    return found


def numpy_steps(llm: LLM, path: Path) -> ProgramSteps:
    transformer = llm._open_engine().model
    hp = transformer.hp
    tables = [
        tuple(np.asarray(transformer.ops.read(table), np.float64) for table in (rope.cos, rope.sin))
        for rope in transformer.ropes
    ]
    return ProgramSteps(
        decode_program(transformer.arch, hp, transformer.weights),
        host_weights(path, hp.n_layers),
        hp,
        tables,
        transformer.arch.rope_layout,
        transformer.windows,
        transformer.scale,
    )


def bound_of(steps: ProgramSteps, one: Any, before: dict[str, Doubles]) -> Doubles | float:
    """Of what FP32 may have lost in this one instruction, from its exact inputs.

    A sum of n products, in any order: n + 1 roundings of the magnitudes; a norm 4 more.
    """
    if isinstance(one, Embed):
        return np.asarray(U * np.abs(steps.buffers[one.out])) if one.factor != 1 else 0.0
    if isinstance(one, AddNormed):  # a sum of squares, of which the root is taken; 8 more
        out, old = np.abs(steps.buffers[one.out]), np.abs(before[one.out])
        return np.asarray((steps.hp.n_embd / 2 + 8) * U * (out + old) + U * out)
    if isinstance(one, Attend):
        hp, largest = steps.hp, max(np.abs(part).max() for part in steps.qkv(one))
        # Where Q is normed here: half of a sum's roundings, of both elements that RoPE turns.
        n_mean = steps.weights[one.q_norm].size if one.q_norm else 0
        n = 2 * hp.head_dim + (n_mean + 64 if one.q_norm else 0)
        largest_score = hp.head_dim * largest**2 * steps.scale
        v = np.abs(steps.v[one.layer].astype(np.float64)).max()
        return float((n * largest_score + 4 * steps.pos + 16) * U * v)
    w, x = np.abs(steps.weights[one.weight]), before[one.x]
    if one.norm:
        mean_square = (x * x).mean()
        x = x / np.sqrt(mean_square + steps.hp.norm_eps) * steps.weights[one.norm]
    lost = np.asarray((w.shape[1] + 9) * U * one.factor * (w @ np.abs(x) + 1e-3))
    out = np.abs(steps.buffers[one.out])
    if one.effect in ("swiglu", "geglu"):
        exact = steps.weights[one.weight] @ x
        gate, up = np.split(np.abs(exact), 2)
        lost_gate, lost_up = np.split(lost, 2)
        # gelu's exponent is 5 roundings from exact, see fuzz.bounds.gate_bound
        in_exponent = 1.6 * gate * (1 + 0.045 * gate**2) * 6 if one.effect == "geglu" else 0
        return np.asarray(1.2 * (lost_gate * up + gate * lost_up) + (8 + in_exponent) * U * out)
    if one.effect == "rotate":
        by_head = lost.reshape(-1, steps.hp.head_dim)
        lost = np.repeat(by_head.max(1), steps.hp.head_dim) * 2
    return np.asarray(lost + 4 * U * out[: lost.size])


def take_newest_key(steps: ProgramSteps, one: Attend, k_cache: Any) -> None:
    """The card's: FP32 may have moved what is rounded to FP16 across a boundary of rounding."""
    _, k, _ = steps.qkv(one)
    appended = k_cache[:, steps.pos]
    n_mean = steps.weights[one.k_norm].size if one.k_norm else 0
    lost = 2 * (n_mean / 2 + 32) * U * np.abs(k).max() if one.k_norm else 0.0
    assert ((k - lost).astype(np.float16) <= appended).all(), one
    assert (appended <= (k + lost).astype(np.float16)).all(), one
    steps.k[one.layer, :, steps.pos] = appended
    steps.buffers[one.out] = steps.attention(one)


def test_each_instruction(model: tuple[LLM, Path]) -> None:
    """After every single one, its buffer; each starts from what the card has, FP32 exactly."""
    llm, path = model
    steps, decoder = numpy_steps(llm, path), llm._open_engine().model.decoder
    card: Any = decoder._card  # type: ignore[union-attr]
    bound_instructions = decoder._instructions  # type: ignore[union-attr]
    decoder.begin(0, SlotRequest(token_id=9, pos=0, count=3))  # type: ignore[union-attr]
    steps.token_id = 9
    for _ in range(3):
        for i, one in enumerate(steps.program):
            before = {name: values.copy() for name, values in steps.buffers.items()}
            run_once(decoder._program, i, i + 1, stream=card)  # type: ignore[union-attr]
            steps.run(i)
            if isinstance(one, Choose):
                continue
            if isinstance(one, Attend):
                take_newest_key(steps, one, card.read(decoder._parts.k[one.layer])[0])  # type: ignore[union-attr]
            if one.out == "logits":
                got = card.read(decoder._state.raw)[0]  # type: ignore[union-attr]
            else:
                words = card.read(bound_instructions[i].out)[0]
                assert len(set(words[:, 1].tolist())) == 1  # all of one epoch
                got = words[:, 0].view(np.float32)
            lost = np.abs(got.astype(np.float64) - steps.buffers[one.out])
            assert (lost <= bound_of(steps, one, before)).all(), (i, one, lost.max())
            steps.buffers[one.out] = got.astype(np.float64)
        [answer] = decoder.answers()  # type: ignore[union-attr]
        assert answer.token_id == steps.token_id


def test_who_wrote_what(model: tuple[LLM, Path]) -> None:
    llm, path = model
    steps = numpy_steps(llm, path)
    program = steps.program
    assert [type(one) for one in program[:4]] == [Embed, Project, Attend, Project]
    found = writers(program)
    assert found[1].x == 0
    has_norm = isinstance(program[4], AddNormed)  # it adds, and not the product before it
    adds = 4 if has_norm else 3
    assert found[adds].old == 0  # the residual stream, to which attention's output is added
    assert found[adds + 1].x == adds
    assert found[adds + 2].x == adds + 1
    last = adds + 3 if has_norm else adds + 2
    assert (found[last].x, found[last].old) == (last - 1, adds)
    steps.run(0)
    message = f"instruction {adds + 1}: x was written by 0, not {adds}"
    with pytest.raises(KernelContractError, match=message):
        steps.run(adds + 1)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    """Norms after blocks and before them, of rows that several warps share."""
    path = tmp_path_factory.mktemp("models") / "wide.gguf"
    write_tiny_gguf(path, arch="gemma3", head_dim=64, n_layers=2, n_embd=512, context_length=16)
    with LLM.load(path, device="emulator", decode="persistent") as llm:
        yield llm


def answers_of(llm: LLM) -> list[tuple[int, float]]:
    decoder = llm.transformer.decoder
    assert not isinstance(decoder, str), decoder
    found = decode(decoder, "persistent", SlotRequest(token_id=5, pos=0, count=4))
    return [(answer.token_id, answer.logprob) for answer in found]


@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_threads(wide: LLM, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """A norm after a block and the product behind it have their sums of squares in one place."""
    expected = answers_of(wide)
    emulator = wide.transformer.ops.card.emulator
    monkeypatch.setattr(emulator, "settings", replace(emulator.settings, order="random", seed=seed))
    assert answers_of(wide) == expected
