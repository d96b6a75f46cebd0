"""Runs Metal kernels on a CPU, checked: see README.md beside this file."""

from __future__ import annotations

from .emulator import Emulator
from .errors import MetalError
from .launches import Launch, Traffic
from .operations import Operations
from .toolchain import available

__all__ = ["Emulator", "Launch", "MetalError", "Operations", "Traffic", "available"]
