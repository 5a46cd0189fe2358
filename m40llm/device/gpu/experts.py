"""Products with the experts that the device's memory names; see device/ops.ExpertOps."""

from typing import Any

from m40llm.device.gpu.card import Card
from m40llm.kernels.add_shares import add_shares
from m40llm.kernels.gemv_experts import gemv_experts, gemv_experts_swiglu
from m40llm.kernels.planes import Planes

Buffer = Any


class GpuExperts:
    """Implements `device.ops.ExpertOps`: each op is one launch of a kernel."""

    def __init__(self, card: Card) -> None:
        self.card = card

    def matmul(self, w: Planes, x: Buffer, ids: Buffer, *, out: Buffer) -> None:
        gemv_experts(w, x, ids, out, stream=self.card)

    def swiglu(self, gate_up: Planes, x: Buffer, ids: Buffer, *, out: Buffer) -> None:
        gemv_experts_swiglu(gate_up, x, ids, out, stream=self.card)

    def add_shares(self, x: Buffer, shares: Buffer, y: Buffer) -> None:
        add_shares(x, shares, y, stream=self.card)
