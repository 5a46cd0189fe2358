"""PTX -> cubin: by the nvJitLink of the CUDA wheels, else by the driver.

A driver compiles only PTX that is no newer than itself; a cubin it need not understand. Where code
for another architecture is asked for (NUMBA_FORCE_CUDA_CC=5.2 on a newer card), the driver
translates it for the card that is there. `requirements.refusal` refuses beforehand the cards for
which neither of the two would do.
"""

from typing import Any, Final

from cuda.bindings import driver

from m40llm.device.cuda.driver import UNSUPPORTED_PTX, DriverError, call
from m40llm.device.cuda.requirements import toolkit_major
from m40llm.device.cuda.toolchain import nvjitlink_assembles, nvjitlink_command, nvjitlink_version
from m40llm.device.gpu.compiler import Capability
from m40llm.errors import DeviceError

_LOG_BYTES: Final = 8192


def assembler_name(target: Capability, card: Capability) -> str:
    """What would assemble, with its version: part of the key of a compiled kernel."""
    if target == card and nvjitlink_assembles(toolkit_major()):
        version = ".".join(map(str, nvjitlink_version() or ()))
        return f"nvjitlink {version} sm_{target[0]}{target[1]}"
    return f"driver {call(driver.cuDriverGetVersion)} sm_{card[0]}{card[1]}"


def assemble(ptx: str, registers: int | None, assembler: str) -> bytes:
    """A cubin of the PTX by the assembler of this name; DeviceError with its words if it cannot."""
    kind, _, architecture = assembler.split()
    if kind == "nvjitlink":
        return nvjitlink_cubin(ptx, registers, architecture)
    return _driver_cubin(ptx, registers)


def nvjitlink_cubin(ptx: str, registers: int | None, architecture: str) -> bytes:
    """A cubin for `architecture` ("sm_52"); needs neither a card nor a driver."""
    from cuda.bindings import nvjitlink

    options = [f"-arch={architecture}"]
    if registers is not None:
        options.append(f"-maxrregcount={registers}")
    linker = nvjitlink.create(len(options), options)
    source = ptx.encode() + b"\0"
    try:
        nvjitlink.add_data(linker, nvjitlink.InputType.PTX, source, len(source), "kernel.ptx")
        nvjitlink.complete(linker)
        cubin = bytearray(nvjitlink.get_linked_cubin_size(linker))
        nvjitlink.get_linked_cubin(linker, cubin)
    except nvjitlink.nvJitLinkError as error:
        log = bytearray(nvjitlink.get_error_log_size(linker))
        nvjitlink.get_error_log(linker, log)
        raise DeviceError(f"assembling for {architecture}: {error}: {_words(log)}") from error
    finally:
        nvjitlink.destroy(linker)
    return bytes(cubin)


def _driver_cubin(ptx: str, registers: int | None) -> bytes:
    log = bytearray(_LOG_BYTES)
    options: dict[Any, Any] = {
        driver.CUjit_option.CU_JIT_ERROR_LOG_BUFFER: log,
        driver.CUjit_option.CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES: len(log),
    }
    if registers is not None:
        options[driver.CUjit_option.CU_JIT_MAX_REGISTERS] = registers
    names, values = list(options), list(options.values())
    state = call(driver.cuLinkCreate, len(names), names, values)
    source = ptx.encode() + b"\0"
    try:
        kind = driver.CUjitInputType.CU_JIT_INPUT_PTX
        call(driver.cuLinkAddData, state, kind, source, len(source), b"kernel.ptx", 0, [], [])
        address, n_bytes = call(driver.cuLinkComplete, state)
        return _bytes_at(int(address), int(n_bytes))
    except DriverError as error:
        told = f"the driver does not take the PTX: {error}: {_words(log)}"
        if error.result == UNSUPPORTED_PTX:
            told += f"; nvJitLink assembles without it: {nvjitlink_command(toolkit_major())}"
        raise DeviceError(told) from error
    finally:
        call(driver.cuLinkDestroy, state)


def _words(log: bytearray) -> str:
    """What an assembler wrote, in one line."""
    return " ".join(log.rstrip(b"\0").decode(errors="replace").split())


def _bytes_at(address: int, n_bytes: int) -> bytes:
    import ctypes

    return ctypes.string_at(address, n_bytes)
