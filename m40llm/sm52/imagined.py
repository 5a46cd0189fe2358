"""A card that is not there: buffers have addresses and no memory, launches are noted, not run.

A transformer over `ImaginedOps` takes every choice that it would take on such a card (kernels,
tiles, splits, grids) and reads no matrices: which launches a model needs comes from the code that
makes them, not from a list beside it.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import groupby, pairwise
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as GGMLType
from numpy.typing import NDArray

from m40llm.device.cuda.array import DeviceArray
from m40llm.device.gpu import held
from m40llm.device.gpu.compiler import argument_type
from m40llm.device.gpu.ops import GpuOps, Table
from m40llm.device.ops import MatrixData
from m40llm.gguf.blocks import row_bytes
from m40llm.kernels.contract import Dim, Kernel
from m40llm.kernels.planes import Planes, from_blocks
from m40llm.progress import Progress
from m40llm.sm52.cards import CardSpec
from m40llm.sm52.experts import ImaginedExperts, even_choice
from m40llm.sm52.work import Work, work

_FIRST_ADDRESS = 1 << 40
ALIGNMENT = 256


@dataclass(frozen=True)
class Given:
    """An argument of a launch: a number, its value; or an array of this shape, and its bytes where
    it holds integers that the host has written."""

    shape: tuple[int, ...] | None
    dtype: str
    value: Any = None


@dataclass(frozen=True)
class Launch:
    """A launch as a card would get it, and what it has to move and to compute.

    grid          blocks
    shared_bytes  dynamic ones
    operand       of a product, the weights: "Q4_K 4096 x 14336"
    given         the arguments; launches that differ in nothing else are one kind
    """

    kernel: Kernel
    arg_types: tuple[Any, ...]
    grid: tuple[int, ...]
    n_threads: int
    shared_bytes: int
    work: Work
    operand: str = ""
    given: tuple[Given, ...] = field(default=(), compare=False, repr=False)

    @property
    def n_blocks(self) -> int:
        return int(np.prod(self.grid))


def launch_of(
    kernel: Kernel,
    grid: Dim,
    block: Dim,
    args: tuple[Any, ...],
    shared_bytes: int,
    positions: NDArray[np.int32],
    operand: str,
) -> Launch:
    """What a card is asked for; positions: of the rows that it works for."""
    return Launch(
        kernel=kernel,
        arg_types=tuple(map(argument_type, args)),
        grid=_sizes(grid),
        n_threads=int(np.prod(block)),
        shared_bytes=shared_bytes,
        work=work(kernel, args, positions),
        operand=operand,
    )


def operand_of(w: Planes) -> str:
    """Weights of a product, as `Launch.operand` names them."""
    return f"{w.type.name} {w.n_rows} x {w.n_cols}"


class ImaginedCard:
    """Implements `device.gpu.card.Card`.

    launches   what has been launched, in order
    positions  int32[n]: of the rows that are being computed, which attention's work depends on
    operand    of the product that is being launched
    """

    has_time_limit = False
    max_steps = 1

    def __init__(self, spec: CardSpec) -> None:
        self.spec, self.name, self.about = spec, spec.name, f"{spec.title}, imagined"
        self.n_sms = spec.n_sms
        self.launches: list[Launch] = []
        self.positions = np.zeros(1, np.int32)
        self.operand = ""
        self._written: dict[int, bytes] = {}  # integers, by address
        self._next = _FIRST_ADDRESS

    @property
    def n_launches(self) -> int:
        return len(self.launches)

    @property
    def allocated_bytes(self) -> int:
        """By all buffers so far, whether they are still wanted or not."""
        return self._next - _FIRST_ADDRESS

    def tell_compiling(self, progress: Progress | None) -> None:
        """Nothing is compiled here."""

    def free_bytes(self) -> int:
        return self.spec.free

    def launch(
        self, kernel: Kernel, grid: Dim, block: Dim, *args: Any, shared_bytes: int = 0
    ) -> None:
        what = launch_of(kernel, grid, block, args, shared_bytes, self.positions, self.operand)
        self.launches.append(replace(what, given=tuple(map(self._given, args))))

    def _given(self, arg: Any) -> Given:
        if not hasattr(arg, "address"):
            return Given(None, type(arg).__name__, arg)
        shape, dtype = tuple(map(int, arg.shape)), np.dtype(arg.dtype)
        value = self._written.get(arg.address, b"")
        return Given(shape, dtype.str, value if 0 < len(value) == arg.nbytes else None)

    def amend(self, **changes: Any) -> None:
        """What the last launch's arguments do not say of it."""
        self.launches[-1] = replace(self.launches[-1], **changes)

    def alloc(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        buffer = DeviceArray.at(self._next, tuple(shape), dtype, None)
        self._next += -(-max(buffer.nbytes, 1) // ALIGNMENT) * ALIGNMENT
        return buffer

    def alloc_mapped(self, shape: tuple[int, ...], dtype: Any) -> tuple[DeviceArray, NDArray[Any]]:
        return self.alloc(shape, dtype), np.zeros(shape, dtype)

    def upload(self, values: NDArray[Any]) -> DeviceArray:
        return self.alloc(values.shape, values.dtype)

    def write(self, buffer: DeviceArray, values: NDArray[Any]) -> None:
        """Integers are remembered, which a launch may read as rows and positions."""
        if np.issubdtype(buffer.dtype, np.integer):
            self._written[buffer.address] = values.astype(buffer.dtype).tobytes()

    def read(self, buffer: DeviceArray) -> NDArray[Any]:
        return np.zeros(buffer.shape, buffer.dtype)

    def copy(self, source: DeviceArray, out: DeviceArray) -> None:
        """Nor do they come from anywhere."""

    def event(self) -> None:
        """Nothing takes time."""

    def has_come(self, event: Any) -> bool:
        return True

    @contextmanager
    def capture(self) -> Iterator[None]:
        yield None

    def beside(self) -> AbstractContextManager[None]:
        return nullcontext()

    def join(self) -> None:
        """There is one order."""


class ImaginedOps(GpuOps):
    """The ops of a GPU on an imagined card: of a weight only its type and shape are looked at."""

    card: ImaginedCard

    def __init__(self, card: ImaginedCard) -> None:
        super().__init__(card)
        self.experts = ImaginedExperts(card, card.amend)
        self._choice: tuple[int, int] | None = None  # address of the ids, and number of experts

    def choose_experts(self, logits: DeviceArray, *, ids: DeviceArray, **how: Any) -> None:
        super().choose_experts(logits, ids=ids, **how)
        self._choice = ids.address, int(logits.shape[1])

    def read(self, buffer: DeviceArray) -> NDArray[Any]:
        """Zeros; of what a router has chosen, an even choice."""
        if self._choice is not None and buffer.address == self._choice[0]:
            return even_choice(int(buffer.shape[0]), self._choice[1])
        return super().read(buffer)

    def matrix(
        self, ggml_type: GGMLType, n_rows: int, n_cols: int, data: NDArray[np.uint8]
    ) -> Planes:
        return self._planes(held.held_matrix(ggml_type, n_cols), n_rows, n_cols)

    def stack(self, parts: Sequence[MatrixData]) -> tuple[tuple[Planes, ...], tuple[Planes, ...]]:
        wholes: list[Planes] = []
        each: list[Planes] = []
        n_cols = parts[0].n_cols
        for type, run in groupby(parts, lambda part: held.held_matrix(part.ggml_type, n_cols)):
            ends = np.cumsum([0, *(part.n_rows for part in run)])
            wholes.append(self._planes(type, int(ends[-1]), n_cols))
            each += [wholes[-1][slice(a, b)] for a, b in pairwise(ends)]
        return tuple(wholes), tuple(each)

    def table(
        self, ggml_type: GGMLType, n_rows: int, n_cols: int, data: NDArray[np.uint8]
    ) -> Table:
        kept = held.held_table(ggml_type)
        return Table(kept, self.card.alloc((n_rows, row_bytes(kept, n_cols)), np.uint8))

    def matmul(self, w: Planes, x: DeviceArray, **how: Any) -> None:
        self.card.operand = operand_of(w)
        super().matmul(w, x, **how)
        self.card.operand = ""

    def _planes(self, type: GGMLType, n_rows: int, n_cols: int) -> Planes:
        row = _row_of(type, n_cols)
        planes = (
            None if plane is None else self.card.alloc((n_rows, plane.shape[1]), plane.dtype)
            for plane in (row.quants, row.highs, row.scales)
        )
        return Planes(type, n_cols, *planes)


@cache
def _row_of(type: GGMLType, n_cols: int) -> Planes:
    """The planes of a matrix of one row, on the host."""
    return from_blocks(type, 1, n_cols, np.zeros(row_bytes(type, n_cols), np.uint8))


def _sizes(grid: Dim) -> tuple[int, ...]:
    return (int(grid),) if isinstance(grid, int | np.integer) else tuple(map(int, grid))
