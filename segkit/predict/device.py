"""Where the network runs, and in which numbers."""

from __future__ import annotations

import re

import torch

from segkit.errors import UsageError


def pick_device(name: str | torch.device) -> torch.device:
    """Return the device that "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:1" means.

    Raises
    ------
    UsageError
        The name is not known, or the machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", str(name)):
        raise UsageError(f"device {str(name)!r} is not known; use auto, cpu, cuda or, of several, cuda:0, cuda:1 ...")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"device {str(name)!r} was asked for, torch sees {torch.cuda.device_count()} CUDA devices; use cpu or auto"
        )
    return device


def pick_precision(name: str, device: torch.device) -> str:
    """Return "fp32" or "bf16"; "auto" is bf16 where the device multiplies in it natively.

    Raises
    ------
    UsageError
        The name is not known, or bf16 is asked for where it would be emulated: slower than fp32 and less exact.
    """
    if name not in ("auto", "fp32", "bf16"):
        raise UsageError(f"precision {name!r} is not known; use auto, fp32 or bf16")
    native = _has_bf16(device)
    if name == "bf16" and not native:
        raise UsageError(
            f"precision bf16 was asked for, but this {device.type} does not compute in bf16; use auto or fp32"
        )
    return "bf16" if native and name != "fp32" else "fp32"


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Older versions of torch do not tell; fp32 is right everywhere.
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
