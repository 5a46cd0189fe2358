"""A decode program run in NumPy, FP64, instruction by instruction: what a card's is compared with.

Every buffer knows who wrote it last; an instruction whose input has another writer than
`instructions.writers` says is a KernelContractError, as on a card it would wait for ever.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m40llm import reference
from m40llm.device.instructions import Attend, Choose, Embed, Instruction, Project, writers
from m40llm.errors import KernelContractError
from m40llm.model.hparams import HParams

Doubles = NDArray[np.float64]


class ProgramSteps:
    """One sequence of a model: `buffers` after each instruction, by the names in the program.

    weights  float64, by the names in the program; `token_embd` beside them
    cos, sin float64[n_pos, rope_dim / 2]
    """

    def __init__(
        self,
        program: Sequence[Instruction],
        weights: Mapping[str, Any],
        hp: HParams,
        cos: Doubles,
        sin: Doubles,
        layout: str,
        window: int = 0,
    ) -> None:
        self.program, self.weights, self.hp = program, weights, hp
        self._cos, self._sin, self._layout, self._window = cos, sin, layout, window
        self.buffers: dict[str, Doubles] = {}
        self._written_by: dict[str, int] = {}
        shape = (hp.n_layers, hp.n_kv_heads, cos.shape[0], hp.head_dim)
        self._k, self._v = np.zeros(shape, np.float16), np.zeros(shape, np.float16)
        self.token_id = self.pos = 0

    def run(self, i: int) -> None:
        """Instruction i, for the token at `pos`; Choose moves on to the next."""
        one, names = self.program[i], writers(self.program)[i]
        if (x := getattr(one, "x", None)) is not None and self._written_by.get(x) != names.x:
            raise KernelContractError(
                f"instruction {i}: {x} was written by {self._written_by.get(x)}, not {names.x}"
            )
        if isinstance(one, Embed):
            self._write(one.out, self.weights["token_embd"][self.token_id], names.own)
        elif isinstance(one, Attend):
            self._write(one.out, self._attend(one), names.own)
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
        result = reference.matmul(self.weights[one.weight], x, bias)[0]
        if one.effect == "add":
            result = self.buffers[one.out] + result
        elif one.effect == "swiglu":
            gate, up = np.split(result, 2)
            result = reference.swiglu(gate[None], up[None])[0]
        elif one.effect == "rotate":
            result = self._rotated(one, result)
        self._write(one.out, result, writer)

    def _rotated(self, one: Project, result: Doubles) -> Doubles:
        """Its rows of Q, K and V stacked; what other products have put there stays."""
        hp, n = self.hp, self.hp.q_dim + 2 * self.hp.kv_dim
        whole = self.buffers.get(one.out, np.zeros(n)).copy()
        whole[one.first_row : one.first_row + result.size] = result
        n_turned = hp.q_dim + hp.kv_dim
        first, last = one.first_row, min(one.first_row + result.size, n_turned)
        if first < last:
            heads = whole[first:last].reshape(1, -1, hp.head_dim)
            pos = np.array([self.pos])
            turned = reference.rope(heads, pos, self._cos, self._sin, self._layout)
            whole[first:last] = turned.reshape(-1)
        return whole

    def _attend(self, one: Attend) -> Doubles:
        hp, layer, pos = self.hp, one.layer, self.pos
        q, k, v = np.split(self.buffers[one.x], [hp.q_dim, hp.q_dim + hp.kv_dim])
        self._k[layer, :, pos] = k.reshape(-1, hp.head_dim)
        self._v[layer, :, pos] = v.reshape(-1, hp.head_dim)
        zero, here = np.zeros(1, np.int32), np.array([pos], np.int32)
        out = reference.attention(
            q.reshape(1, hp.n_heads, hp.head_dim),
            self._k[layer][None],
            self._v[layer][None],
            zero,
            here,
            1 / np.sqrt(hp.head_dim),
            self._window,
        )
        return np.asarray(out).reshape(-1)
