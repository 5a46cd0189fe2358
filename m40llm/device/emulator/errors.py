"""What the emulator reports about a kernel: each error names kernel, line, block and thread."""

from m40llm.errors import KernelContractError


class EmulatorError(KernelContractError):
    """A kernel did what would be undefined, or would hang, on a GPU."""


class OutOfBoundsError(EmulatorError):
    """An access outside every live array, or outside the block's shared arrays."""


class UninitialisedReadError(EmulatorError):
    """A read of shared memory or of tracked device memory that nothing wrote."""


class MisalignedAccessError(EmulatorError):
    """A load or store at an address that is not a multiple of what the instruction needs."""


class ReadOnlyWriteError(EmulatorError):
    """A write to a read-only array, or a read-only-cache load of what this launch wrote."""


class AddressSpaceError(EmulatorError):
    """An instruction for global memory accesses shared or local memory, or one for shared memory
    another."""


class BarrierDivergenceError(EmulatorError):
    """Threads of one block wait at different barriers, or at a barrier that some never reach."""


class WarpDivergenceError(EmulatorError):
    """A shuffle, vote or warp barrier whose mask names lanes that never arrive there."""


class InactiveLaneError(EmulatorError):
    """A shuffle that reads a lane which does not take part in it."""


class KernelRaisedError(EmulatorError):
    """The kernel itself raised an exception."""


class DeadlockError(EmulatorError):
    """No thread of the launch can ever go on."""


class UnsupportedKernelError(EmulatorError):
    """The kernel uses something that the emulator has no twin for."""
