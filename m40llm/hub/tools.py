"""Programs that are pulled as models are: from a wheel, checked, whole or not at all."""

from pathlib import Path
from typing import Final

from m40llm.hub.aliases import Alias, Part
from m40llm.hub.pull_alias import alias_path, is_pulled, pull_alias
from m40llm.progress import Progress

# CUDA 12.4's: the last wheels with one that still knows Maxwell are Triton's. NVIDIA's own
# (nvidia-cuda-nvdisasm) begin with CUDA 13, which does not.
NVDISASM: Final = Alias(
    name="nvdisasm",
    file_name="nvdisasm-12.4",
    n_bytes=50_683_112,
    sha256="af0a3b5be57130ecf050a310767d354a4c730b30a3bf3b88c100dc3c9bcbebea",
    licence="NVIDIA CUDA Toolkit",
    about="NVIDIA's disassembler, of CUDA 12.4",
    parts=(
        Part(
            package="triton",
            version="3.1.0",
            wheel_sha256="0f34f6e7885d1bf0eaaf7ba875a5f0ce6f3c13ba98f9503651c1e6dc6757ed5c",
            wheel_bytes=209_506_424,
            member="triton/backends/nvidia/bin/nvdisasm",
            pip_options=("--python-version=3.11", "--platform=manylinux_2_17_x86_64"),
        ),
    ),
    folder="tools",
)


def pulled_tool(tool: Alias) -> Path | None:
    """Where it lies; None while it is not pulled."""
    return alias_path(tool) if is_pulled(tool) else None


def pull_tool(tool: Alias, progress: Progress) -> Path:
    """Fetch the program unless it is there, and let it be run. PullError as in `pull_alias`."""
    path = pull_alias(tool, force=False, progress=progress)
    path.chmod(0o755)
    return path
