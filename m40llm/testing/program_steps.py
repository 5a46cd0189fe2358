"""A decode program run in NumPy, FP64, instruction by instruction: what a card's is compared with.

Every buffer knows who wrote it last; an instruction whose input has another writer than
`instructions.writers` says is a KernelContractError, as on a card it would wait for ever.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m40llm import reference
from m40llm.device.instructions import (
    AddNormed,
    Attend,
    Choose,
    Embed,
    Instruction,
    Project,
    writers,
)
from m40llm.errors import KernelContractError
from m40llm.model.hparams import HParams

Doubles = NDArray[np.float64]


class ProgramSteps:
    """One sequence of a model: `buffers` after each instruction, by the names in the program.

    weights  float64, by the names in the program; `token_embd` beside them
    tables   of each layer: cos and sin, float64[n_pos, rope_dim / 2]
    windows  of each layer: keys that a row sees, 0 for all
    scale    of attention's scores; by default 1 / sqrt(head_dim)
    k, v     float16[n_layers, n_kv_heads, n_pos, head_dim]: the cache
    """

    def __init__(
        self,
        program: Sequence[Instruction],
        weights: Mapping[str, Any],
        hp: HParams,
        tables: Sequence[tuple[Doubles, Doubles]],
        layout: str,
        windows: Sequence[int],
        scale: float | None = None,
    ) -> None:
        self.program, self.weights, self.hp = program, weights, hp
        self._tables, self._layout, self._windows = tables, layout, windows
        self.scale = hp.head_dim**-0.5 if scale is None else scale
        self.buffers: dict[str, Doubles] = {}
        self._written_by: dict[str, int] = {}
        shape = (hp.n_layers, hp.n_kv_heads, tables[0][0].shape[0], hp.head_dim)
        self.k, self.v = np.zeros(shape, np.float16), np.zeros(shape, np.float16)
        self.token_id = self.pos = 0

    def run(self, i: int) -> None:
        """Instruction i, for the token at `pos`; Choose moves on to the next."""
        one, names = self.program[i], writers(self.program)[i]
        if (x := getattr(one, "x", None)) is not None and self._written_by.get(x) != names.x:
            raise KernelContractError(
                f"instruction {i}: {x} was written by {self._written_by.get(x)}, not {names.x}"
            )
        if isinstance(one, Embed):
            embedding = self.weights["token_embd"][self.token_id]
            self._write(one.out, one.factor * embedding, names.own)
        elif isinstance(one, Attend):
            self._write(one.out, self._attend(one), names.own)
        elif isinstance(one, AddNormed):
            normed = reference.rms_norm(
                self.buffers[one.x][None], self.weights[one.norm], self.hp.norm_eps
            )
            self._write(one.out, self.buffers[one.out] + one.factor * normed[0], names.own)
        elif isinstance(one, Choose):
            self.token_id, self.pos = int(self.buffers["logits"].argmax()), self.pos + 1
        else:
            self._project(one, names.own)

    def step(self) -> int:
        """All instructions once: the token chosen."""
        for i in range(len(self.program)):
            self.run(i)
        return self.token_id

    def _write(self, name: str, values: Doubles, writer: int) -> None:
        self.buffers[name] = np.asarray(values, np.float64)
        self._written_by[name] = writer

    def _project(self, one: Project, writer: int) -> None:
        x = self.buffers[one.x][None]
        if one.norm:
            x = reference.rms_norm(x, self.weights[one.norm], self.hp.norm_eps)
        bias = self.weights[one.bias] if one.bias else None
        result = one.factor * reference.matmul(self.weights[one.weight], x, bias)[0]
        if one.effect == "add":
            result = self.buffers[one.out] + result
        elif one.effect in ("swiglu", "geglu"):
            gated = reference.geglu if one.effect == "geglu" else reference.swiglu
            gate, up = np.split(result, 2)
            result = gated(gate[None], up[None])[0]
        elif one.out == "qkv":
            result = self._rotated(one, result)
        self._write(one.out, result, writer)

    def _rotated(self, one: Project, result: Doubles) -> Doubles:
        """Its rows of Q, K and V stacked; what other products have put there stays."""
        hp, n = self.hp, self.hp.q_dim + 2 * self.hp.kv_dim
        whole = self.buffers.get(one.out, np.zeros(n)).copy()
        whole[one.first_row : one.first_row + result.size] = result
        n_turned = hp.q_dim + hp.kv_dim
        first, last = one.first_row, min(one.first_row + result.size, n_turned)
        if one.effect == "rotate" and first < last:
            whole[first:last] = self._turned(whole[first:last], one.layer).reshape(-1)
        return whole

    def _turned(self, x: Doubles, layer: int) -> Doubles:
        """Heads of Q or K, [n, head_dim], turned by RoPE."""
        heads, pos = x.reshape(1, -1, self.hp.head_dim), np.array([self.pos])
        return np.asarray(reference.rope(heads, pos, *self._tables[layer], self._layout)[0])

    def qkv(self, one: Attend) -> list[Doubles]:
        """Q, K and V as attention takes them, [n_heads or n_kv_heads, head_dim] each."""
        hp = self.hp
        parts = np.split(self.buffers[one.x], [hp.q_dim, hp.q_dim + hp.kv_dim])
        found = [part.reshape(-1, hp.head_dim) for part in parts]
        for i, norm in enumerate((one.q_norm, one.k_norm)):
            if norm:
                weight = self.weights[norm]  # as long as a head, or as all of them
                rows = found[i].reshape(-1, weight.size)
                found[i] = self._turned(reference.rms_norm(rows, weight, hp.norm_eps), one.layer)
        return found

    def _attend(self, one: Attend) -> Doubles:
        _, self.k[one.layer, :, self.pos], self.v[one.layer, :, self.pos] = self.qkv(one)
        return self.attention(one)

    def attention(self, one: Attend) -> Doubles:
        """Over the cache as it is."""
        zero, here = np.zeros(1, np.int32), np.array([self.pos], np.int32)
        k, v = self.k[one.layer][None], self.v[one.layer][None]
        window = self._windows[one.layer]
        out = reference.attention(self.qkv(one)[0][None], k, v, zero, here, self.scale, window)
        return np.asarray(out).reshape(-1)
