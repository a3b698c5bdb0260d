"""Measure the receptive field of a network."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal

import torch
from torch import Tensor, nn

from segkit.models.model_file import GLOBAL

# Exceptions of networks for input sizes that they do not accept.
_SHAPE_ERRORS = (RuntimeError, AssertionError, ValueError)
# Relative to the largest logit. Two float32 runs of one network differ by 1e-6 to 2e-5, networks that compute different
# things by 2e-4 or more.
_MAX_RELATIVE_DIFFERENCE = 1e-4
# The receptive field is measured on strips of these lengths; half of the last one is the largest radius that is found.
_STRIP_LENGTHS_PX = (2048, 8192)


def outputs_match(one: Tensor, other: Tensor) -> bool:
    """Return whether two outputs of a network differ only by float32 rounding."""
    return bool((one - other).abs().max() <= _MAX_RELATIVE_DIFFERENCE * other.abs().max())


@torch.no_grad()
def try_forward(network: nn.Module, samples: Sequence[Tensor]) -> tuple[Tensor, Tensor] | None:
    """Return the first sample that a network accepts, and its output; None if it accepts none."""
    for sample in samples:
        with suppress(*_SHAPE_ERRORS):
            return sample, network(sample)
    return None


def measure_receptive_field(network: nn.Module, stride: int, bands: int) -> int | Literal["global"]:
    """Measure `Segmenter.receptive_field` by the spread of NaN, which every operation passes on, whatever the weights.

    Returns
    -------
    An upper bound of the radius in pixels, less than one stride above the true one; "global" if it is unlimited.
    """
    network = copy.deepcopy(network).cpu().float().eval()
    with torch.inference_mode(), suppress(*_SHAPE_ERRORS):
        radii = [_receptive_field_along(network, stride, bands, turned=turned) for turned in (False, True)]
        finite = [radius for radius in radii if radius is not None]
        return max(finite) if len(finite) == 2 else GLOBAL
    return GLOBAL  # the network does not accept strips


def _receptive_field_along(network: nn.Module, stride: int, bands: int, *, turned: bool) -> int | None:
    """Measure the radius along a strip of rows, or of columns if `turned`; None if it is unlimited."""
    rows = max(2 * stride, 64)

    def run(strip: Tensor) -> Tensor:
        strip = strip.mT if turned else strip
        out: Tensor = network(strip.contiguous(memory_format=torch.channels_last))
        return out.mT if turned else out

    for length in _STRIP_LENGTHS_PX:
        strip = torch.zeros(1, bands, rows, length)
        start = length // 2 // stride * stride
        strip[..., start : start + stride] = torch.nan
        affected: list[int] = run(strip).isnan().any(dim=(0, 1, 2)).nonzero().flatten().tolist()
        if not affected or affected[0] == 0 or affected[-1] == length - 1:
            continue
        radius = max(start + stride - 1 - affected[0], affected[-1] - start)
        # In some networks the influence of a pixel is limited, but depends on its position in the window (shifted
        # windows, interpolation between the window's corners). They count as unlimited.
        margin = (radius // stride + 1) * stride
        strip = torch.randn(1, bands, rows, 4 * margin + 4 * stride, generator=torch.Generator().manual_seed(0))
        inner = slice(margin, margin + 2 * stride)
        part = strip[..., stride : stride + 2 * margin + 2 * stride]
        if outputs_match(run(part)[..., inner], run(strip)[..., stride:][..., inner]):
            return radius
    return None
