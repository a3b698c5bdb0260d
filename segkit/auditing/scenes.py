"""Labels and out-of-fold probabilities of a scene in temporary files, read as strips of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import torch
from numpy.typing import NDArray
from rasterio.windows import Window
from torch import Tensor

from segkit.auditing.folds import FoldPrediction
from segkit.auditing.segments import Segments, find_interior
from segkit.data.pairing import Sample
from segkit.io.grid import Grid
from segkit.io.layer_file import LayerFile
from segkit.runtime.progress import Advance
from segkit.task import IGNORE, Task

_STRIP_PIXELS = 2**20  # that are read at once
_STEPS = 254  # of a stored probability; 0 is a pixel without one


@dataclass(frozen=True)
class Strip:
    """Rows of a scene.

    Parameters
    ----------
    top
        Row of the scene at which the arrays start.
    rows
        The rows of the arrays that belong to the strip; the others lie around it.
    labels
        Category indices (T, H, W); `IGNORE` where unlabelled or not predicted.
    probabilities
        Of each category, float32 (T, K, H, W).
    """

    top: int
    rows: slice
    labels: NDArray[np.int16]
    probabilities: NDArray[np.float32]

    @property
    def first(self) -> int:
        """Row of the scene at which the strip starts."""
        return self.top + int(self.rows.start)

    def of_target(self, target: int) -> tuple[NDArray[np.int16], NDArray[np.float32], NDArray[np.bool_]]:
        """Return labels (H, W) and probabilities (K, H, W) of a target, and which pixels are at no border (H, W).

        Only of the rows of the strip; those around it are needed to find borders.
        """
        inner = find_interior(self.labels[target])[self.rows]
        return self.labels[target, self.rows], self.probabilities[target][:, self.rows], inner


@dataclass
class AuditedScene:
    """A scene with what was predicted of it.

    Parameters
    ----------
    segments
        For each target the segments of its labels, and those of doubtful pixels; filled by `segkit.auditing.findings`.
    numbers
        Their provisional numbers + 1, in two layers for each target.
    unseen
        Labelled pixels whose class no model of their fold was trained on.
    """

    sample: Sample
    task: Task
    probabilities: LayerFile
    labels: LayerFile
    numbers: LayerFile
    segments: list[Segments] = field(default_factory=list)
    regions: list[Segments] = field(default_factory=list)
    unseen: int = 0

    @property
    def grid(self) -> Grid:
        """The grid of the scene."""
        return self.sample.scene.grid

    @property
    def name(self) -> str:
        """The name of the scene."""
        return self.sample.scene.name

    def spans(self) -> Iterator[tuple[int, int]]:
        """Yield first and last row (exclusive) of each strip."""
        rows = max(1, _STRIP_PIXELS // self.grid.width)
        for top in range(0, self.grid.height, rows):
            yield top, min(top + rows, self.grid.height)

    def strips(self, around: int = 0) -> Iterator[Strip]:
        """Yield the scene from top to bottom, each strip with up to `around` rows more above and below."""
        for top, bottom in self.spans():
            first, last = max(0, top - around), min(self.grid.height, bottom + around)
            labels = self.labels.read(first, last).astype(np.int16) - np.int16(1)
            found = _decode(self.probabilities.read(first, last))
            shares = self.task.category_probabilities(found[None])
            yield Strip(first, slice(top - first, bottom - first), labels, shares[0].numpy())

    def store(self, prediction: FoldPrediction, advance: Advance) -> None:
        """Predict the areas of this scene."""
        statistics = prediction.examination.statistics
        assert statistics is not None
        missing = statistics.counts == 0
        for area in prediction.areas:
            if area.sample is not self.sample:
                continue
            for block in prediction.predictor(area):
                truth = block.truth
                unseen = np.stack([missing[target][truth[target]] for target in range(len(truth))]) & (truth != IGNORE)
                self.unseen += int(unseen.sum())
                known = (truth != IGNORE) & ~unseen
                used = known.any(axis=0)
                self.labels.write(block.window, np.where(known, truth, IGNORE) + 1, used)
                self.probabilities.write(block.window, np.rint(block.probabilities.clip(0, 1) * _STEPS) + 1, used)
                advance(used.sum() / 1e6)

    def crop(self, window: Window) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
        """Return the labels and the decisions (T, H, W) of a window; `IGNORE` where there is none."""
        top, left = int(window.row_off), int(window.col_off)
        rows, columns = (top, top + int(window.height)), slice(left, left + int(window.width))
        labels = self.labels.read(*rows)[..., columns].astype(np.int16) - np.int16(1)
        stored = self.probabilities.read(*rows)[..., columns]
        decided = self.task.decide(_decode(stored)[None])[0].numpy()
        return labels, np.where(stored[0] == 0, IGNORE, decided).astype(np.int16)


def _decode(stored: NDArray[np.uint8]) -> Tensor:
    """Return stored probabilities as numbers from 0 to 1; 0 where there is none."""
    return torch.from_numpy((stored.astype(np.float32) - 1).clip(0) / _STEPS)


def open_scenes(samples: Sequence[Sample], task: Task, folder: Path, stack: ExitStack) -> list[AuditedScene]:
    """Make the empty files of each scene in a folder; they are removed with the stack."""

    def new(layers: int, sample: Sample, dtype: type) -> LayerFile:
        file = stack.enter_context(TemporaryFile(dir=folder))  # noqa: SIM115 - closed by the stack
        return LayerFile(file, layers, sample.scene.grid.shape, dtype)

    small = np.uint8 if len(task.categories) < np.iinfo(np.uint8).max else np.int16
    return [
        AuditedScene(
            sample,
            task,
            new(task.channels, sample, np.uint8),
            new(task.n_targets, sample, small),
            new(2 * task.n_targets, sample, np.int32),
        )
        for sample in samples
    ]
