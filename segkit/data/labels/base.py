"""What all labels of a scene have: a window of them is read as target planes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.io.grid import Grid
from segkit.task.task import IGNORE, Task

COUNT_WINDOW = 2048  # pixels along a side


@dataclass(frozen=True, eq=False)
class Labels(ABC):
    """Labels of one scene, read window by window; holds no open file, so it can go to another process.

    Parameters
    ----------
    name
        The files, as errors name them.
    grid
        The scene's grid, which is the labels' too.
    task
        Whose target planes are read.
    notes
        What was met on opening and dealt with: geometries repaired or skipped, a missing georeference.
    soft
        Whether planes are soft: shares of the channels' categories, instead of categories.
    doubts
        What may be wrong until somebody says which way it is meant: files that declare the value of a class, or of
        background, as no data. Until then it counts as not known.
    """

    name: str
    grid: Grid
    task: Task
    notes: tuple[str, ...]
    soft: bool
    doubts: tuple[str, ...] = field(default=(), kw_only=True)

    def read(self, window: Window) -> NDArray[Any]:
        """Read the target planes of a window; `IGNORE` where not known, and outside the scene.

        Returns
        -------
        int16 (P, H, W), or float32 (C, H, W) where labels are soft; see `segkit.task.task`

        Raises
        ------
        LabelError
            A code the task does not know, a number that is no code or no fraction, an overlap of classes that exclude
            each other, or sources that contradict each other.
        RasterError
            The file is damaged there.
        """
        row, column, height, width = (int(i) for i in (window.row_off, window.col_off, window.height, window.width))
        if row >= 0 and column >= 0 and row + height <= self.grid.height and column + width <= self.grid.width:
            return self._read(window)
        planes, dtype = (self.task.channels, np.float32) if self.soft else (self.task.planes, np.int16)
        target = np.full((planes, height, width), IGNORE, dtype=dtype)
        top, bottom = max(0, row), min(self.grid.height, row + height)
        left, right = max(0, column), min(self.grid.width, column + width)
        if top < bottom and left < right:
            inside = Window(left, top, right - left, bottom - top)
            target[:, top - row : bottom - row, left - column : right - column] = self._read(inside)
        return target

    @abstractmethod
    def _read(self, window: Window) -> NDArray[Any]:
        """Read a window that lies inside the scene."""


@dataclass(frozen=True, eq=False)
class PartialLabels(Labels):
    """Labels as their files hold them."""

    def _read(self, window: Window) -> NDArray[Any]:
        return self.task.encode_masks(self._claims(window), ignore=[IGNORE], source=self.name)

    @abstractmethod
    def _claims(self, window: Window) -> NDArray[Any]:
        """Say of each class what is known of it in a window inside the scene.

        int16 (k, H, W): 1 it is there, 0 it is not, `IGNORE` these labels do not say. Or, of fractions, float64
        (k + 1, H, W): its share and at last that of background, NaN where they do not say.
        """
