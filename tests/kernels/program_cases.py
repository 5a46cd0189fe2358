"""A random tiny model as a decode program on a launcher, and the same model in NumPy, FP64."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as GGMLType
from numpy.typing import NDArray

from m40llm.device.gpu.bind import angles_on
from m40llm.device.gpu.bound import Other, Product, Setting, in_parts
from m40llm.device.gpu.decode import encode
from m40llm.device.gpu.decode_state import HostRings, new_exchange, new_partial, new_state
from m40llm.device.gpu.shares import new_parts
from m40llm.device.ops import RopeTable
from m40llm.gguf.blocks import dequantize
from m40llm.kernels.planes import Planes, from_blocks
from m40llm.kernels.program import state as rings
from m40llm.kernels.program import words
from m40llm.kernels.program.form import Form
from m40llm.kernels.program.run import Program, run_once, run_persistent
from m40llm.kernels.program.state import DecodeState
from m40llm.testing.random_blocks import random_tensor

EPS, THETA = 1e-5, 10000.0
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Shape:
    """As HParams name them."""

    n_layers: int = 2
    n_embd: int = 256
    n_ff: int = 512
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 64
    rope_dim: int = 64
    vocab_size: int = 320
    max_seq_len: int = 16

    @property
    def q_dim(self) -> int:
        return self.n_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        return self.n_kv_heads * self.head_dim


@dataclass
class ProgramCase:
    """The model on a launcher: `host` has its weights in FP64, by name."""

    shape: Shape
    launcher: Any
    setting: Setting
    program: Program
    state: DecodeState
    rings: HostRings
    host: dict[str, Doubles]
    n_commands: int = 0
    n_answers: int = 0
    instructions: list[Product | Other] = field(default_factory=list)  # keeps the weights alive

    def command(self, operation: int, slot: int = 0, count: int = 0) -> None:
        self.n_commands += 1
        rings.put_command(self.rings.commands, self.n_commands, operation, slot, count)

    def answers(self) -> list[tuple[int, int, float, int]]:
        """(slot, token, log-probability, done) of those that have come since the last call."""
        found = []
        self.launcher.read(self.state.control)  # waits for what was launched
        while True:
            what, value = (int(v) for v in self.rings.answers[self.n_answers % rings.N_ANSWERS])
            if {what >> 32, value >> 32} != {self.n_answers + 1}:
                self.rings.n_taken[0] = self.n_answers
                return found
            slot, done, token, logprob = rings.told(what, value)
            found.append((slot, token, logprob, done))
            self.n_answers += 1

    def begin(self, *token_ids: int, count: int) -> None:
        """Every slot from position 0 on, with this token."""
        self.launcher.write(self.state.token_ids, np.int32(token_ids))
        self.launcher.write(self.state.pos, np.zeros(len(token_ids), np.int32))
        for slot in range(len(token_ids)):
            self.command(rings.DECODE, slot, count)

    def eager(self) -> None:
        """One step, a launch an instruction."""
        for at in range(self.program.code.shape[0]):
            run_once(self.program, at, at + 1, stream=self.launcher)

    def persistent(self, n_steps: int = 1000) -> None:
        run_persistent(self.program, n_steps, stream=self.launcher)


class _Maker:
    """Weights, drawn: on the launcher, and in FP64."""

    def __init__(self, launcher: Any, seed: int) -> None:
        self.launcher, self.rng = launcher, np.random.default_rng(seed)
        self.host: dict[str, Doubles] = {}

    def matrix(self, name: str, n_rows: int, n_cols: int, type: GGMLType, std: float = 1) -> Planes:
        values = random_tensor(self.rng, (n_rows, n_cols), std / math.sqrt(n_cols), type)
        data = np.ascontiguousarray(values).view(np.uint8).reshape(n_rows, -1)
        self.host[name] = dequantize(type, data).reshape(n_rows, n_cols).astype(np.float64)
        p, upload = from_blocks(type, n_rows, n_cols, data), self.launcher.upload
        others = (None if plane is None else upload(plane) for plane in (p.highs, p.scales))
        return Planes(type, n_cols, upload(p.quants), *others)

    def vector(self, name: str, n: int) -> Any:
        values = (1 + 0.1 * self.rng.standard_normal(n)).astype(np.float32)
        self.host[name] = values.astype(np.float64)
        return self.launcher.upload(values)


def make_case(
    launcher: Any, types: tuple[GGMLType, ...], *, layout: Any = "interleaved", n_seqs: int = 1,
    n_blocks: int = 3, shape: Shape | None = None, seed: int = 0,
) -> ProgramCase:  # fmt: skip
    """types: of all matrices but ffn_down and output, and of these two."""
    shape, make = shape or Shape(), _Maker(launcher, seed)
    form = Form(
        tuple(sorted(set(types))), GGMLType.F16, n_seqs, shape.n_heads, shape.n_kv_heads,
        shape.head_dim, shape.rope_dim, layout,
    )  # fmt: skip
    cache_shape = (shape.n_layers, n_seqs, shape.n_kv_heads, shape.max_seq_len, shape.head_dim)
    b = {
        name: new_exchange(launcher, n_seqs, width)
        for name, width in (
            *(("x", shape.n_embd), ("qkv", shape.q_dim + 2 * shape.kv_dim)),
            *(("attn", shape.q_dim), ("h", shape.n_ff)),
        )
    }
    b["k"], b["v"] = (launcher.alloc(cache_shape, np.dtype(np.float16)) for _ in range(2))
    partial = new_partial(launcher, form, n_blocks)
    state, host_rings = new_state(
        launcher, form.n_seqs, shape.vocab_size, n_blocks, partial=partial
    )
    embd = make.rng.standard_normal((shape.vocab_size, shape.n_embd)).astype(np.float16)
    make.host["token_embd"] = embd.astype(np.float64)
    pairs = np.arange(shape.rope_dim // 2)
    angles = np.outer(np.arange(shape.max_seq_len), THETA ** (-2.0 * pairs / shape.rope_dim))
    make.host["angles"] = angles
    cos, sin = (launcher.upload(of(angles).astype(np.float32)) for of in (np.cos, np.sin))
    rope = RopeTable(cos, sin, layout)
    table = angles_on(launcher, rope, shape.max_seq_len)
    instructions = _instructions(shape, make, types, b, table)
    setting = Setting(
        form,
        state,
        launcher.upload(embd.view(np.uint8)),
        EPS,
        1 / math.sqrt(shape.head_dim),
        shape.max_seq_len,
        parts=new_parts(launcher, instructions, form, n_blocks),
    )
    program = Program(form, launcher.upload(encode(instructions, setting)), state.arrived, n_blocks)
    return ProgramCase(
        shape, launcher, setting, program, state, host_rings, make.host, instructions=instructions
    )


def _instructions(
    shape: Shape, make: _Maker, types: tuple[GGMLType, ...], b: dict[str, Any], angles: Any
) -> list[Product | Other]:
    first, last = types[0], types[-1]
    found: list[Product | Other] = [Other(words.EMBED, out=b["x"])]
    for layer in range(shape.n_layers):
        cache = {"k_cache": b["k"][layer], "v_cache": b["v"][layer]}
        n_qkv = shape.q_dim + 2 * shape.kv_dim
        qkv = make.matrix(f"qkv.{layer}", n_qkv, shape.n_embd, first)
        norm = make.vector(f"attn_norm.{layer}", shape.n_embd)
        o = make.matrix(f"o.{layer}", shape.n_embd, shape.q_dim, first)
        gate_up = make.matrix(f"gate_up.{layer}", 2 * shape.n_ff, shape.n_embd, first)
        ffn_norm = make.vector(f"ffn_norm.{layer}", shape.n_embd)
        down = make.matrix(f"down.{layer}", shape.n_embd, shape.n_ff, last)
        found += [
            Product("rotate", qkv, b["x"], b["qkv"], norm=norm, angles=angles),
            Other(words.ATTEND, x=b["qkv"], out=b["attn"], **cache),
            Product("add", o, b["attn"], b["x"]),
            Product("swiglu", gate_up, b["x"], b["h"], norm=ffn_norm),
            *in_parts(Product("add", down, b["h"], b["x"]), b["x"].shape[0]),
        ]
    output = make.matrix("output", shape.vocab_size, shape.n_embd, last, std=4)
    norm = make.vector("output_norm", shape.n_embd)
    found.append(Product("logits", output, b["x"], norm=norm))
    return [*found, Other(words.CHOOSE)]


class NumpyLoop:
    """The model of a case in FP64 with an FP16 cache, one sequence."""

    def __init__(self, case: ProgramCase) -> None:
        self.shape, self.host, s = case.shape, case.host, case.shape
        self.layout, self.pos = case.program.form.rope_layout, 0
        self.k = np.zeros((s.n_layers, s.n_kv_heads, s.max_seq_len, s.head_dim))
        self.v = np.zeros_like(self.k)

    def logits(self, token_id: int) -> Doubles:
        s, host, x = self.shape, self.host, self.host["token_embd"][token_id].copy()
        for layer in range(s.n_layers):
            qkv = host[f"qkv.{layer}"] @ _normed(x, host[f"attn_norm.{layer}"])
            q, k, v = np.split(qkv, [s.q_dim, s.q_dim + s.kv_dim])
            self.k[layer, :, self.pos] = self._turned(k).astype(np.float16)
            self.v[layer, :, self.pos] = v.reshape(-1, s.head_dim).astype(np.float16)
            x = x + host[f"o.{layer}"] @ self._attention(layer, self._turned(q))
            gate_up = host[f"gate_up.{layer}"] @ _normed(x, host[f"ffn_norm.{layer}"])
            gate, up = np.split(gate_up, 2)
            x = x + host[f"down.{layer}"] @ (gate / (1 + np.exp(-gate)) * up)
        self.pos += 1
        return np.asarray(host["output"] @ _normed(x, host["output_norm"]))

    def greedy(self, token_id: int, n: int) -> list[int]:
        found = []
        for _ in range(n):
            token_id = int(self.logits(token_id).argmax())
            found.append(token_id)
        return found

    def _attention(self, layer: int, q: Doubles) -> Doubles:
        s, end = self.shape, self.pos + 1
        group = s.n_heads // s.n_kv_heads
        rows = []
        for head in range(s.n_heads):
            scores = self.k[layer, head // group, :end] @ q[head] / math.sqrt(s.head_dim)
            weights = np.exp(scores - scores.max())
            rows.append(weights / weights.sum() @ self.v[layer, head // group, :end])
        return np.concatenate(rows)

    def _turned(self, x: Doubles) -> Doubles:
        x, angle = x.reshape(-1, self.shape.head_dim).copy(), self.host["angles"][self.pos]
        n = self.shape.rope_dim
        first, second = (
            (slice(0, n, 2), slice(1, n, 2))
            if self.layout == "interleaved"
            else (slice(0, n // 2), slice(n // 2, n))
        )
        a, b = x[:, first].copy(), x[:, second].copy()
        x[:, first] = a * np.cos(angle) - b * np.sin(angle)
        x[:, second] = a * np.sin(angle) + b * np.cos(angle)
        return x


def _normed(x: Doubles, weight: Doubles) -> Doubles:
    return np.asarray(x / np.sqrt((x * x).mean() + EPS) * weight)
