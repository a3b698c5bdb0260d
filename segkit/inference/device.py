"""Where the network runs, and in which numbers."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

from segkit.errors import UsageError

_SOME_MEMORY = 2**32  # where a system does not tell
# Of Linux control groups, version 2 and 1: where they lie, limit and use, and a prefix in memory.stat.
_GROUPS = {
    2: ("sys/fs/cgroup", "memory.max", "memory.current", ""),
    1: ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
}


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


def available_memory(device: torch.device, root: Path = Path("/")) -> int:
    """Return how many bytes can be had on a device now; on a CPU, within the limits of its control groups.

    Parameters
    ----------
    root
        Where a Linux machine's `proc` and `sys` lie.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(0, min([_of_machine(root), *_of_groups(root)]))


def _of_machine(root: Path) -> int:
    with suppress(OSError):
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    with suppress(AttributeError, ValueError, OSError):  # Windows has no sysconf, macOS not this name
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return _SOME_MEMORY


def _of_groups(root: Path) -> Iterator[int]:
    """Yield what is left in each memory group that this process is in, and in those around it."""
    membership = root / "proc/self/cgroup"
    for line in membership.read_text().splitlines() if membership.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base, limit, used, prefix = _GROUPS[1 if controllers else 2]
        folder = root / base / path.lstrip("/")
        # In a container the path may be the host's, and the group itself lies at the base.
        for group in (folder, *folder.parents):
            with suppress(OSError, ValueError):  # not this group's file, or "max"
                left = int((group / limit).read_text()) - int((group / used).read_text())
                stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                # Pages of files are counted as used, and given back when they are needed.
                yield left + sum(int(stat.get(f"{prefix}{kind}_file", 0)) for kind in ("inactive", "active"))
            if group == root / base:
                break
