"""Layers with experts: each token goes through the few feed-forward networks that a router chooses.

    router logits of a row -> softmax over all experts -> the largest n_experts_used, of sum 1
    x[t] += sum over the chosen e of share[t, e] * down_e(silu(gate_e x_norm[t]) * up_e x_norm[t])

As Mixtral (arXiv 2401.04088) and Qwen3-MoE have it; a file's `expert_weights_norm` of false keeps
the softmax's shares as they are. Slot t * n_experts_used + k is the k-th expert of row t.

Where there are no more slots than experts, as in decode, each slot's products are its own, chosen
by ids that never leave the device: the host neither waits nor launches expert by expert. An even
router then chooses 0.63 times as many experts as there are slots, or more, so that at most 1.6
times the bytes are read. With more slots, as in prefill, the host reads the choice, and each expert
gets all its rows at once, in the order of the experts: it is read once, for many rows by gemm.
"""

import numpy as np

from m40llm.device.ops import Buffer, ExpertOps, Ops
from m40llm.model.hparams import HParams
from m40llm.model.weights import Experts
from m40llm.model.workspace import ExpertRows, Rows


def route(ops: Ops, w: Experts, ws: Rows, x: Buffer) -> Buffer:
    """The router's logits   [t, n_experts]"""
    assert ws.expert_rows is not None, "the workspace of a model without experts"
    ops.matmul(w.router, x, out=ws.expert_rows.router)
    return ws.expert_rows.router


def add_experts(ops: Ops, w: Experts, ws: Rows, x: Buffer, hp: HParams) -> None:
    """ws.x += residual_scale * what the experts make of x, where it was routed to   [t, n_embd]"""
    of_experts = ws.expert_rows
    assert of_experts is not None, "the workspace of a model without experts"
    ops.choose_experts(
        of_experts.router,
        scale=hp.residual_scale,
        is_normalised=hp.expert_weights_norm,
        ids=of_experts.ids,
        shares=of_experts.shares,
    )  # [t * n_experts_used]
    if ops.experts is not None and of_experts.ids.shape[0] <= hp.n_experts:
        _add_by_slot(ops, ops.experts, w, ws, of_experts, x)
    else:
        _add_by_expert(ops, w, ws, of_experts, x)


def _add_by_slot(
    ops: Ops, chosen: ExpertOps, w: Experts, ws: Rows, slots: ExpertRows, x: Buffer
) -> None:
    if len(w.gate_up) == 1:
        chosen.swiglu(w.gate_up[0], x, slots.ids, out=slots.gate)  # [slots, n_ff]
    else:  # of two types: two products
        gate, up = w.gate_up
        chosen.matmul(gate, x, slots.ids, out=slots.gate)  # [slots, n_ff]
        chosen.matmul(up, x, slots.ids, out=slots.up)  # [slots, n_ff]
        ops.swiglu(slots.gate, slots.up, out=slots.gate)
    chosen.matmul(w.all_down[0], slots.gate, slots.ids, out=slots.down)  # [slots, n_embd]
    chosen.add_shares(ws.x, slots.shares, slots.down)


def _add_by_expert(ops: Ops, w: Experts, ws: Rows, of_experts: ExpertRows, x: Buffer) -> None:
    ids, shares = ops.read(of_experts.ids), ops.read(of_experts.shares)
    order = np.argsort(ids, kind="stable")  # slots of the first expert, then ...
    n_used = ids.size // x.shape[0]
    ops.write(of_experts.rows, (order // n_used).astype(np.int32))
    ops.write(of_experts.shares, shares[order])
    counts = np.bincount(ids)
    ends = np.cumsum(counts)
    for expert in np.flatnonzero(counts):
        n, end = int(counts[expert]), int(ends[expert])
        first = end - n
        rows, of_rows = of_experts.rows[first:end], of_experts.shares[first:end]
        gathered, gate, up, out = of_experts.x[:n], ws.gate[:n], ws.up[:n], of_experts.out[:n]
        ops.take_rows(x, rows, out=gathered)  # [n, n_embd]
        ops.matmul(w.gate[expert], gathered, out=gate)  # [n, n_ff]
        ops.matmul(w.up[expert], gathered, out=up)  # [n, n_ff]
        ops.swiglu(gate, up, out=gate)
        ops.matmul(w.down[expert], gate, out=out)  # [n, n_embd]
        ops.add_rows(ws.x, rows, of_rows, out)
