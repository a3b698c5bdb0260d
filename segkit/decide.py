"""Decisions of a model in labelled areas, streamed, as prediction makes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window
from torch import Tensor

from segkit.data.cover import Cover
from segkit.data.split import Area
from segkit.model import Segmenter
from segkit.predict.choice import Choice, Options, choose, windows_at_once
from segkit.predict.device import pick_device
from segkit.predict.engine import predict_blocks
from segkit.predict.network import Runner


@dataclass(frozen=True)
class Decided:
    """A part of an area.

    Parameters
    ----------
    window
        Where it lies in the scene.
    planes
        Decided categories, int16 (P, H, W).
    truth
        Target planes of the same shape; `IGNORE` where the label is not known, there is no data, or nothing counts.
    confidence
        Probability of what was decided, float32 (P, H, W).
    """

    window: Window
    planes: NDArray[np.int16]
    truth: NDArray[np.int16]
    confidence: NDArray[np.float32]


class Decider:
    """Decides area after area; what the options leave open is chosen at the first one.

    The network is prepared once; the segmenter's thresholds may change between two areas.
    """

    def __init__(self, segmenter: Segmenter, options: Options | None = None) -> None:
        self.segmenter, self._options = segmenter, options or Options()
        self._device = pick_device(self._options.device)
        self._choice: Choice | None = None
        self._runner: Runner | None = None

    def __call__(self, area: Area, windows: Sequence[Window] | None = None) -> Iterator[Decided]:
        """Yield the decisions of an area, every pixel that counts once.

        Parameters
        ----------
        windows
            Only what lies in these; it is decided as it is with all of the area.
        """
        task = self.segmenter.task
        for window, probabilities, truth in self.probabilities(area, windows):
            planes = task.decide(probabilities[None])
            confidence = task.confidence(probabilities[None], planes)[0].cpu().numpy()
            yield Decided(window, planes[0].cpu().numpy(), truth, confidence)

    def probabilities(
        self, area: Area, windows: Sequence[Window] | None = None
    ) -> Iterator[tuple[Window, Tensor, NDArray[np.int16]]]:
        """Yield what decisions are made of: a window, its probabilities (C, H, W) and its true planes (P, H, W)."""
        segmenter, scene = self.segmenter, area.sample.scene
        region = area.cover if windows is None else _Both(area.cover, Cover(tuple(windows)))
        if self._choice is None or self._runner is None:
            self._choice = choose(segmenter, scene, self._options, region)
            self._runner = Runner(segmenter, self._device, self._choice.precision, tta=self._choice.tta is not None)
        tiling = self._choice.tiling(scene.grid, segmenter.stride)
        batch = self._options.batch or windows_at_once(segmenter, self._choice, tiling, self._device)
        with closing(predict_blocks(self._runner, scene, tiling, batch=batch, region=region)) as blocks:
            for block in blocks:
                if block.valid.any():
                    yield block.window, block.probabilities, area.truth(block.window, block.valid)


@dataclass(frozen=True)
class _Both:
    """A region that is what two have in common."""

    one: Cover
    other: Cover

    def mask(self, window: Window) -> NDArray[np.bool_]:
        return self.one.mask(window) & self.other.mask(window)
