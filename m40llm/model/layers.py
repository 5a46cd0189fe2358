"""The layers of a transformer over `Ops`: one op a line, its shape at the right."""

import numpy as np
from numpy.typing import NDArray

from m40llm.device.ops import Buffer, Ops, RopeTable
from m40llm.model.arch import Architecture
from m40llm.model.attend import attend
from m40llm.model.experts import add_experts, route
from m40llm.model.hparams import HParams
from m40llm.model.kv_cache import KVCache
from m40llm.model.lora import Adapter
from m40llm.model.part import Part
from m40llm.model.sites import Hooks, HostMemory
from m40llm.model.weights import Experts, LayerWeights, Weights
from m40llm.model.workspace import Rows


class Layers:
    """Attention and feed-forward network of each layer, which take the residual stream through.

    adapter  of the rows to come; what is cached stays as it is
    hooks    who looks at the rows to come (sites.py)
    """

    def __init__(
        self,
        ops: Ops,
        arch: Architecture,
        hp: HParams,
        weights: Weights,
        part: Part,
        kv: KVCache,
        ropes: list[RopeTable],
    ) -> None:
        self.ops, self.arch, self.hp, self.weights = ops, arch, hp, weights
        self.part, self.kv, self.ropes = part, kv, ropes
        self.adapter: Adapter | None = None
        self.hooks: Hooks | None = None
        self.windows = [arch.window_of(layer, hp) for layer in part.layers]
        self.scale = arch.score_scale(hp)
        self._attn_softcap, self._logit_softcap = arch.softcaps(hp)

    def _run_layers(self, ws: Rows, single_rows: bool) -> None:
        """The residual stream through all layers; `single_rows` as Ops.attention has it."""
        for layer, w in enumerate(self.weights.layers):
            self._visit("resid_pre", ws.x, layer)
            self._attention_block(layer, w, ws, single_rows)
            self._visit("resid_mid", ws.x, layer)
            self._ffn_block(layer, w, ws)
            self._visit("resid_post", ws.x, layer)

    def _attention_block(self, layer: int, w: LayerWeights, ws: Rows, single_rows: bool) -> None:
        ops, k_cache, v_cache = self.ops, self.kv.k[layer], self.kv.v[layer]
        x = self._normed(layer, "attn_norm", w.attn_norm, ws)  # [t, n_embd]
        with ops.beside():
            self._product(layer, "attn_k", x, ws.k)  # [t, kv_dim]
            self._product(layer, "attn_v", x, ws.v)  # [t, kv_dim]
        self._product(layer, "attn_q", x, ws.q)  # [t, q_dim]
        ops.join()
        for name, heads in (("k", ws.k_heads), ("v", ws.v_heads), ("q", ws.q_heads)):
            self._visit(name, heads, layer)
        if self.arch.qk_norm != "none":
            is_row = self.arch.qk_norm == "row"
            q, k = (ws.q, ws.k) if is_row else (ws.q_heads, ws.k_heads)
            ops.rms_norm(q, w.attn_q_norm, self.hp.norm_eps, out=q)
            ops.rms_norm(k, w.attn_k_norm, self.hp.norm_eps, out=k)
            self._visit("q_norm", ws.q_heads, layer)
            self._visit("k_norm", ws.k_heads, layer)
        rope = self.ropes[layer]
        ops.rope_append(ws.q_heads, ws.k_heads, ws.v_heads, k_cache, v_cache, ws.seq, ws.pos, rope)
        if self._wants("scores", layer) or self._wants("pattern", layer):
            self._attend(layer, ws)
        else:
            ops.attention(
                ws.q_heads,
                k_cache,
                v_cache,
                ws.seq,
                ws.pos,
                scale=self.scale,
                window=self.windows[layer],
                softcap=self._attn_softcap,
                single_rows=single_rows,
                out=ws.attn_heads,
            )  # [t, n_heads, head_dim]
        self._visit("z", ws.attn_heads, layer)
        self._add(layer, "attn_output", "attn_out", ws, ws.attn, w.post_attention_norm)

    def _attend(self, layer: int, ws: Rows) -> None:
        """ops.attention in steps that can be seen."""
        q, seq, pos = (self.ops.read(buffer) for buffer in (ws.q_heads, ws.seq, ws.pos))
        out = attend(
            *(q, self.kv, layer, seq, pos),
            scale=self.scale,
            window=self.windows[layer],
            softcap=self._attn_softcap,
            change=lambda name, values: self._visit(name, values, layer, on_host=True),
        )
        self.ops.write(ws.attn_heads, out)

    def _ffn_block(self, layer: int, w: LayerWeights, ws: Rows) -> None:
        ops = self.ops
        x = self._normed(layer, "ffn_norm", w.ffn_norm, ws)  # [t, n_embd]
        if w.experts is not None:
            self._visit("router", route(ops, w.experts, ws, x), layer)  # [t, n_experts]
            self._add_experts(layer, w.experts, ws, x)
            return
        with ops.beside():
            self._product(layer, "ffn_up", x, ws.up)  # [t, n_ff]
        self._product(layer, "ffn_gate", x, ws.gate)  # [t, n_ff]
        ops.join()
        self._visit("up", ws.up, layer)
        self._visit("gate", ws.gate, layer)
        gated = ops.geglu if self.arch.activation == "gelu" else ops.swiglu
        gated(ws.gate, ws.up, out=ws.gate)  # in place
        self._visit("act", ws.gate, layer)
        self._add(layer, "ffn_down", "mlp_out", ws, ws.gate, w.post_ffw_norm)

    def _add_experts(self, layer: int, experts: Experts, ws: Rows, x: Buffer) -> None:
        if not self._wants("mlp_out", layer):
            add_experts(self.ops, experts, ws, x, self.hp)
            return
        before = self.ops.read(ws.x)
        self.ops.write(ws.x, np.zeros_like(before))
        add_experts(self.ops, experts, ws, x, self.hp)
        self._visit("mlp_out", ws.x, layer)
        self.ops.copy(ws.x, out=ws.x_norm)
        self.ops.write(ws.x, before)
        self.ops.add_scaled(ws.x, ws.x_norm, 1)

    def _normed(self, layer: int, name: str, norm: Buffer | None, ws: Rows) -> Buffer:
        """The residual stream as a block reads it."""
        if norm is None:
            return ws.x
        self.ops.rms_norm(ws.x, norm, self.hp.norm_eps, out=ws.x_norm)
        self._visit(name, ws.x_norm, layer)
        return ws.x_norm

    def _product(
        self, layer: int, name: str, x: Buffer, out: Buffer, *, accumulate: bool = False
    ) -> None:
        """out (+)= W x (+ bias), and what the adapter adds, of a matrix of the layer."""
        w = self.weights.layers[layer]
        matrix, bias = getattr(w, name), getattr(w, f"{name}_bias")
        self.ops.matmul(matrix, x, out=out, bias=bias, accumulate=accumulate)
        if self.adapter is not None:
            self.adapter.add(f"blk.{self.part.first + layer}.{name}", x, out)

    def head_outputs(self, layer: int, z: NDArray[np.float32]) -> NDArray[np.float64]:
        """What each head of a row adds to the residual stream: [n_heads, n_embd]

        z [n_heads, head_dim]; `layer` is the model's. The factor of a norm behind attention is that
        of the sum; a bias belongs to no head.
        """
        ops, hp, w = self.ops, self.hp, self.weights.layers[layer - self.part.first]
        n_heads, head_dim = z.shape
        alone = np.zeros((n_heads, n_heads, head_dim), np.float32)
        alone[np.arange(n_heads), np.arange(n_heads)] = z
        rows, out = ops.empty((n_heads, z.size)), ops.empty((n_heads, hp.n_embd))
        ops.write(rows, alone.reshape(n_heads, -1))
        ops.matmul(w.attn_output, rows, out=out)
        of_heads: NDArray[np.float64] = ops.read(out).astype(np.float64)
        if w.post_attention_norm is not None:
            whole = of_heads.sum(axis=0)
            if w.attn_output_bias is not None:
                whole += ops.read(w.attn_output_bias)
            of_heads *= ops.read(w.post_attention_norm) / np.sqrt(np.mean(whole**2) + hp.norm_eps)
        return of_heads * hp.residual_scale

    def _add(
        self, layer: int, name: str, site: str, ws: Rows, x: Buffer, norm: Buffer | None
    ) -> None:
        """ws.x += residual_scale * norm(W x + bias), of which the product adds if that is all."""
        ops, factor, is_seen = self.ops, self.hp.residual_scale, self._wants(site, layer)
        if norm is None and factor == 1 and not is_seen:
            self._product(layer, name, x, ws.x, accumulate=True)
            return
        self._product(layer, name, x, ws.x_norm)
        if norm is not None:
            ops.rms_norm(ws.x_norm, norm, self.hp.norm_eps, out=ws.x_norm)
        if is_seen:
            if factor != 1:
                ops.scale(ws.x_norm, factor)
            factor = 1
            self._visit(site, ws.x_norm, layer)
        ops.add_scaled(ws.x, ws.x_norm, factor)

    def _wants(self, name: str, layer: int) -> bool:
        return self.hooks is not None and self.hooks.wants(self._site(name, layer))

    def _visit(
        self,
        name: str,
        values: Buffer,
        layer: int | None = None,
        *,
        rows: NDArray[np.int32] | None = None,
        on_host: bool = False,
    ) -> None:
        """Shows the hooks, if there are any, what was computed; they may change it."""
        if self.hooks is not None and self.hooks.wants(site := self._site(name, layer)):
            self.hooks.visit(site, HostMemory() if on_host else self.ops, values, rows)

    def _site(self, name: str, layer: int | None) -> str:
        return name if layer is None else f"blk.{self.part.first + layer}.{name}"
