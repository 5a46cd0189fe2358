"""Runs the GPU's kernels on the CPU, checked. See docs/emulator.md."""

from m40llm.device.emulator.emulator import Emulator
from m40llm.device.emulator.errors import EmulatorError

__all__ = ["Emulator", "EmulatorError"]
