"""Base classes of labels: labels of a scene, read window by window as targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.io.grid import Grid
from segkit.task import IGNORE, Task

COUNT_WINDOW_PX = 2048  # side of the windows in which whole files are counted


@dataclass(frozen=True, eq=False)
class Labels(ABC):
    """Labels of one scene, read window by window. Holds no open file, so it can be sent to another process.

    Parameters
    ----------
    name
        The files, for messages.
    grid
        The grid of the scene and of the labels.
    task
        Defines the targets.
    notes
        Messages about what was fixed on opening: geometries repaired or skipped, a missing georeference.
    soft
        Whether targets are soft: fractions of the channels' categories, instead of categories.
    doubts
        Messages about files that declare the code of a class or of background as no data. Such pixels are unlabelled
        until `labels.nodata` is set.
    """

    name: str
    grid: Grid
    task: Task
    notes: tuple[str, ...]
    soft: bool
    ambiguities: tuple[str, ...] = field(default=(), kw_only=True)

    def read(self, window: Window) -> NDArray[Any]:
        """Read the targets of a window; `IGNORE` where unlabelled, and outside the scene.

        Returns
        -------
        int16 (T, H, W), or float32 (C, H, W) if labels are soft; see `segkit.task.task`

        Raises
        ------
        LabelError
            An undefined code, a number that is not a code or fraction, an overlap of mutually exclusive classes, or
            sources that contradict each other.
        RasterError
            The file is damaged in this window.
        """
        row, column, height, width = (int(i) for i in (window.row_off, window.col_off, window.height, window.width))
        if row >= 0 and column >= 0 and row + height <= self.grid.height and column + width <= self.grid.width:
            return self._read(window)
        targets, dtype = (self.task.channels, np.float32) if self.soft else (self.task.n_targets, np.int16)
        target = np.full((targets, height, width), IGNORE, dtype=dtype)
        top, bottom = max(0, row), min(self.grid.height, row + height)
        left, right = max(0, column), min(self.grid.width, column + width)
        if top < bottom and left < right:
            inside = Window(left, top, right - left, bottom - top)
            target[:, top - row : bottom - row, left - column : right - column] = self._read(inside)
        return target

    @abstractmethod
    def _read(self, window: Window) -> NDArray[Any]:
        """Read a window inside the scene."""


@dataclass(frozen=True, eq=False)
class PartialLabels(Labels):
    """Labels that cover some or all classes, and can be merged with others."""

    def _read(self, window: Window) -> NDArray[Any]:
        return self.task.encode_masks(self._partial_labels(window), ignore=[IGNORE], source=self.name)

    @abstractmethod
    def _partial_labels(self, window: Window) -> NDArray[Any]:
        """Read partial labels of a window inside the scene.

        int16 (k, H, W), per class: 1 present, 0 absent, `IGNORE` unlabelled. Or, of fractions, float64 (k + 1, H, W):
        the fraction of each class, then of background; NaN where unlabelled.
        """
