"""What turns kernels into machine code on this machine: whose compiler, and whose assembler.

CUDA's releases are compared as (major, minor). A driver takes PTX of its own release and older;
so does nvJitLink, which comes as a wheel, and may lag behind where another package pins it.
"""

import importlib.metadata
from typing import Final

Version = tuple[int, int]
# By CUDA's major version: the wheel that brings NVVM, and the one that brings nvJitLink.
_NVVM: Final = {12: "nvidia-cuda-nvcc-cu12", 13: "nvidia-nvvm"}
_NVJITLINK: Final = {12: "nvidia-nvjitlink-cu12", 13: "nvidia-nvjitlink"}

# A module of NVVM IR that does nothing.
_NOTHING: Final = b"""
target triple = "nvptx64-nvidia-cuda"
target datalayout = "e-p:64:64:64-i1:8:8-i8:8:8-i16:16:16-i32:32:32-i64:64:64-i128:128:128-\
f32:32:32-f64:64:64-v16:16:16-v32:32:32-v64:64:64-v128:128:128-n16:32:64"
define void @nothing() {
  ret void
}
!nvvmir.version = !{!0}
!0 = !{i32 2, i32 0}
"""


def compiler_version(toolkit: int | None) -> Version | None:
    """The release whose PTX kernels become; None where no wheel tells."""
    return _wheel(_NVVM.get(toolkit or 0, ""))


def nvvm_compiles_for(target: Version) -> bool:
    """Whether the NVVM that the loader finds takes this architecture: asked of itself, since one
    that CUDA_HOME names may be older than the bindings."""
    from cuda.bindings import nvvm

    program = nvvm.create_program()
    try:
        nvvm.add_module_to_program(program, _NOTHING, len(_NOTHING), "nothing")
        nvvm.compile_program(program, 1, ["-arch=compute_{}{}".format(*target)])
    except nvvm.nvvmError:
        return False
    finally:
        nvvm.destroy_program(program)
    return True


def nvjitlink_version() -> Version | None:
    """Of the library that the loader finds, in a wheel or elsewhere; None if there is none."""
    try:
        from cuda.bindings import nvjitlink

        major, minor = nvjitlink.version()
    except Exception:  # whatever a missing or odd library raises, the driver may still assemble
        return None
    return int(major), int(minor)


def nvjitlink_assembles(toolkit: int | None) -> bool:
    """Whether nvJitLink is there, and new enough for what the compiler writes."""
    there, written = nvjitlink_version(), compiler_version(toolkit)
    return there is not None and (written is None or there >= written)


def nvjitlink_command(toolkit: int | None) -> str:
    """What installs an nvJitLink that is new enough."""
    return f"pip install -U {_NVJITLINK.get(toolkit or 12, _NVJITLINK[13])}"


def _wheel(distribution: str) -> Version | None:
    try:
        major, minor, *_ = importlib.metadata.version(distribution).split(".")
        return int(major), int(minor)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None
