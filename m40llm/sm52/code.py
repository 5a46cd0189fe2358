"""All that is known of a compiled kernel. Cubins are kept on disk: a model's kernels take a minute.

<cache>/sm52/<digest of kernel, argument types, card's architecture and tools>.kernel
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba

from m40llm.device.gpu.compiler import Capability
from m40llm.device.gpu.disk_cache import entry_path, key_of, read_entry, write_entry
from m40llm.device.gpu.fingerprint import fingerprint
from m40llm.kernels.contract import Kernel
from m40llm.sm52.assembly import assemble, assembler_version
from m40llm.sm52.disassembler import disassemble
from m40llm.sm52.sass import Listing, parse


@dataclass(frozen=True)
class Code:
    """A kernel's code for a card.

    shared_bytes  static ones
    listing       its instructions; None without a disassembler
    """

    registers: int
    spill_bytes: int
    shared_bytes: int
    listing: Listing | None


def code_of(
    kernel: Kernel, arg_types: tuple[Any, ...], capability: Capability, tool: Path | None
) -> Code:
    """Compiled now, or before. DeviceError where the assembler or the disassembler fails."""
    header, cubin = _entry(kernel, arg_types, capability)
    listing = None if tool is None else parse(disassemble(cubin, tool))
    return Code(header["registers"], header["spill_bytes"], header["shared_bytes"], listing)


def _entry(
    kernel: Kernel, arg_types: tuple[Any, ...], capability: Capability
) -> tuple[dict[str, Any], bytes]:
    identity, path = fingerprint(kernel), None
    if identity is not None:
        tools = f"numba {numba.__version__}, ptxas {assembler_version()}"
        path = entry_path("sm52", key_of(identity, str(arg_types), str(capability), tools))
        if stored := read_entry(path):
            return stored
    made = assemble(kernel, arg_types, capability)
    header = {
        "registers": made.registers,
        "spill_bytes": made.spill_bytes,
        "shared_bytes": made.shared_bytes,
    }
    if path is not None:
        write_entry(path, header, made.cubin)
    return header, made.cubin
