"""The receptive field of a network, measured."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal

import torch
from torch import Tensor, nn

from segkit.models.model_file import GLOBAL

# What a network raises for a size that it does not take.
_REFUSALS = (RuntimeError, AssertionError, ValueError)
# Two float32 runs of one network differ by less than this share of the largest logit: by 1e-6 to 2e-5, where one that
# computes something else differs by 2e-4 and more.
_ROUNDING = 1e-4
# Lengths of the strips on which the reach is measured; half of the last one is the largest reach that is found.
_STRIPS = (2048, 8192)


def _allclose(one: Tensor, other: Tensor) -> bool:
    """Whether two runs of a network differ only as float32 rounds."""
    return bool((one - other).abs().max() <= _ROUNDING * other.abs().max())


@torch.no_grad()
def try_forward(network: nn.Module, samples: Sequence[Tensor]) -> tuple[Tensor, Tensor] | None:
    """Return the first sample that a network takes, and what it makes of it."""
    for sample in samples:
        with suppress(*_REFUSALS):
            return sample, network(sample)
    return None


def measure_receptive_field(network: nn.Module, stride: int, bands: int) -> int | Literal["global"]:
    """Measure `Segmenter.reach` with NaN, which every operation passes on, whatever the weights.

    It is an upper bound, less than a stride above the true reach.
    """
    network = copy.deepcopy(network).cpu().float().eval()
    with torch.inference_mode(), suppress(*_REFUSALS):
        reaches = [_receptive_field_along(network, stride, bands, turned=turned) for turned in (False, True)]
        finite = [reach for reach in reaches if reach is not None]
        return max(finite) if len(finite) == 2 else GLOBAL
    return GLOBAL  # it takes no strips


def _receptive_field_along(network: nn.Module, stride: int, bands: int, *, turned: bool) -> int | None:
    """Measure the reach along a strip of some rows, or, turned, of columns; None where it has no end."""
    rows = max(2 * stride, 64)

    def run(strip: Tensor) -> Tensor:
        strip = strip.mT if turned else strip
        out: Tensor = network(strip.contiguous(memory_format=torch.channels_last))
        return out.mT if turned else out

    for length in _STRIPS:
        strip = torch.zeros(1, bands, rows, length)
        start = length // 2 // stride * stride
        strip[..., start : start + stride] = torch.nan
        met: list[int] = run(strip).isnan().any(dim=(0, 1, 2)).nonzero().flatten().tolist()
        if not met or met[0] == 0 or met[-1] == length - 1:
            continue
        reach = max(start + stride - 1 - met[0], met[-1] - start)
        # Some networks see so far only, but from other places in another window: the mesh of shifted windows, or an
        # interpolation whose corners are those of the window.
        margin = (reach // stride + 1) * stride
        strip = torch.randn(1, bands, rows, 4 * margin + 4 * stride, generator=torch.Generator().manual_seed(0))
        inner = slice(margin, margin + 2 * stride)
        part = strip[..., stride : stride + 2 * margin + 2 * stride]
        if _allclose(run(part)[..., inner], run(strip)[..., stride:][..., inner]):
            return reach
    return None
