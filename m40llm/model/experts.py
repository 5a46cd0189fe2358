"""Layers with experts: each token goes through the few feed-forward networks that a router chooses.

    router logits of a row -> softmax over all experts -> the largest n_experts_used, of sum 1
    x[t] += sum over the chosen e of share[t, e] * down_e(silu(gate_e x_norm[t]) * up_e x_norm[t])

As Mixtral (arXiv 2401.04088) and Qwen3-MoE have it. The choice is made on the host, a wait for the
device a layer; then each expert that somebody chose gets all its rows at once, in the order of the
experts.
"""

import numpy as np
from numpy.typing import NDArray

from m40llm.device.ops import Buffer, Ops
from m40llm.model.hparams import HParams
from m40llm.model.weights import Experts
from m40llm.model.workspace import Rows


def add_experts(ops: Ops, w: Experts, ws: Rows, x: Buffer, hp: HParams) -> None:
    """ws.x += residual_scale * what the experts make of x   [t, n_embd]"""
    of_experts = ws.expert_rows
    assert of_experts is not None, "the workspace of a model without experts"
    ops.matmul(w.router, x, out=of_experts.router)  # [t, n_experts]
    chosen, shares = choose(ops.read(of_experts.router), hp.n_experts_used)
    order = np.argsort(chosen, axis=None, kind="stable")  # rows of the first expert, then ...
    ops.write(of_experts.rows, (order // hp.n_experts_used).astype(np.int32))
    ops.write(of_experts.shares, hp.residual_scale * shares.reshape(-1)[order])
    counts = np.bincount(chosen.reshape(-1))
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


def choose(
    logits: NDArray[np.floating], n_used: int
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Of float[t, n_experts]: (experts, shares) [t, n_used], the largest first, of sum 1.

    Among equals the first. What the shares of the others would have been does not matter: a
    softmax over the chosen alone is the same.
    """
    chosen = np.argsort(-logits, axis=1, kind="stable")[:, :n_used]
    values = np.take_along_axis(logits, chosen, axis=1).astype(np.float64)
    with np.errstate(invalid="ignore"):  # of infinities, which the logits' check tells of
        shares = np.exp(values - values[:, :1])
        return chosen, (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)
