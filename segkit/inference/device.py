"""The device and precision of the network, its threads, and the memory that is available.

Torch is imported where a device of torch is asked for: a runtime of graphs computes on the `CPU` without it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import psutil

from segkit.errors import UsageError
from segkit.models.graph_runtime import has_bf16

if TYPE_CHECKING:
    import torch

# Linux control groups, version 2 and 1: folder, files of limit and usage, and prefix of keys in memory.stat.
_CGROUP_FILES = {
    2: ("sys/fs/cgroup", "memory.max", "memory.current", ""),
    1: ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
}


class Device(Protocol):
    """A `torch.device`, or `CPU`."""

    @property
    def type(self) -> str:
        """The kind of device: "cpu", "cuda" or "mps"."""


@dataclass(frozen=True)
class _WithoutTorch:
    type: str

    def __str__(self) -> str:
        return self.type


CPU = _WithoutTorch("cpu")
_threads: int | None = None  # of a runtime of graphs in this process


def set_default_threads(number: int) -> None:
    """Set what `default_threads` returns in this process."""
    global _threads
    _threads = number


def default_threads() -> int:
    """Return the number of threads of a runtime of graphs: as for torch, that of OpenMP or one for each core."""
    if _threads is not None:
        return _threads
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if given.isdecimal() and int(given):
        return int(given)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(usable, psutil.cpu_count(logical=False) or usable))


def pick_device(name: str | torch.device) -> torch.device:
    """Return the device named "auto" (CUDA if available), "cpu", "cuda", "cuda:1" or "mps" (Apple).

    Raises
    ------
    UsageError
        The name is not known, or the machine has no such device.
    """
    import torch

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


def pick_precision(name: str, device: Device) -> str:
    """Return "fp32" or "bf16"; "auto" is bf16 if the device supports it natively.

    Raises
    ------
    UsageError
        The name is not known, or bf16 would be emulated, which is slower than fp32 and less exact.
    """
    if name not in ("auto", "fp32", "bf16"):
        raise UsageError(f"precision {name!r} is not known; use auto, fp32 or bf16")
    native = name != "fp32" and _has_bf16(device)
    if name == "bf16" and not native:
        raise UsageError(
            f"precision bf16 was asked for, but this {device.type} does not compute in bf16; use auto or fp32"
        )
    return "bf16" if native else "fp32"


def _has_bf16(device: Device) -> bool:
    if device is CPU:
        return has_bf16()
    import torch

    if device.type == "cuda":
        with torch.cuda.device(str(device)):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "mps":
        return False  # the first Apple GPUs emulate it, and torch does not tell which do
    # Older versions of torch cannot tell; fp32 works everywhere.
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def available_memory(device: Device, root: Path = Path("/")) -> int:
    """Return the free memory of a device in bytes; for a CPU, within the limits of its control groups.

    Parameters
    ----------
    root
        Root of the Linux folders `proc` and `sys`.
    """
    if device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(str(device))
        return free + torch.cuda.memory_reserved(str(device)) - torch.cuda.memory_allocated(str(device))
    if device.type == "mps":
        import torch

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
