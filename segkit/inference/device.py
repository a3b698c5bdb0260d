"""The device and precision of the network, and the memory that is available."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from segkit.errors import UsageError

# Linux control groups, version 2 and 1: folder, files of limit and usage, and prefix of keys in memory.stat.
_CGROUP_FILES = {
    2: ("sys/fs/cgroup", "memory.max", "memory.current", ""),
    1: ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
}


def pick_device(name: str | torch.device) -> torch.device:
    """Return the device named "auto" (CUDA if available), "cpu", "cuda", "cuda:1" or "mps" (Apple).

    Raises
    ------
    UsageError
        The name is not known, or the machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", str(name)):
        raise UsageError(
            f"device {str(name)!r} is not known; use auto, cpu, cuda, mps, or cuda:0, cuda:1 ... if there are several"
        )
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"device {str(name)!r} was asked for, but torch finds {torch.cuda.device_count()} CUDA devices; use cpu or "
            "auto"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("device 'mps' was asked for, but torch finds no Apple GPU; use cpu or auto")
    return device


def pick_precision(name: str, device: torch.device) -> str:
    """Return "fp32" or "bf16"; "auto" is bf16 if the device supports it natively.

    Raises
    ------
    UsageError
        The name is not known, or bf16 would be emulated, which is slower than fp32 and less exact.
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
    if device.type == "mps":
        return False  # the first Apple GPUs emulate it, and torch does not tell which do
    # Older versions of torch cannot tell; fp32 works everywhere.
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def available_memory(device: torch.device, root: Path = Path("/")) -> int:
    """Return the free memory of a device in bytes; for a CPU, within the limits of its control groups.

    Parameters
    ----------
    root
        Root of the Linux folders `proc` and `sys`.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return max(0, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return max(0, min([int(psutil.virtual_memory().available), *_cgroup_memory(root)]))


def _cgroup_memory(root: Path) -> Iterator[int]:
    """Yield the free memory of each control group of this process, and of their parents."""
    membership = root / "proc/self/cgroup"
    for line in membership.read_text(encoding="utf-8").splitlines() if membership.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base, limit, used, prefix = _CGROUP_FILES[1 if controllers else 2]
        folder = root / base / path.lstrip("/")
        # In a container the path may be that of the host, and the group is mounted at the base.
        for group in (folder, *folder.parents):
            with suppress(OSError, ValueError):  # there is no such file, or it holds "max"
                left = int((group / limit).read_text(encoding="utf-8")) - int(
                    (group / used).read_text(encoding="utf-8")
                )
                stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines())
                # Cached files count as used, but their memory is released when it is needed.
                yield left + sum(int(stat.get(f"{prefix}{kind}_file", 0)) for kind in ("inactive", "active"))
            if group == root / base:
                break
