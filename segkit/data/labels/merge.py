"""Several label sources of one scene as one."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.data.labels.base import COUNT_WINDOW, PartialLabels
from segkit.data.labels.fractions import FractionLabels
from segkit.errors import LabelError
from segkit.task.task import BACKGROUND, IGNORE, SLACK


@dataclass(frozen=True, eq=False)
class MergedLabels(PartialLabels):
    """What several sources say of one scene."""

    parts: tuple[PartialLabels, ...]

    def _read(self, window: Window) -> NDArray[Any]:
        if not self.soft:
            return super()._read(window)
        own = [part for part in self.parts if isinstance(part, FractionLabels)]
        rests = {part.rest for part in own}
        rest = next((one for one in ("ignore", "background") if one in rests), None)
        return self.task.encode_fractions(
            self._claims(window), rest=rest, slack=max(part.slack for part in own), source=self.name
        )

    def _claims(self, window: Window) -> NDArray[Any]:
        joined, *others = (self._said(part, window) for part in self.parts)
        for claims in others:
            if _differ(joined, claims).any():
                self._refuse()
            joined = np.where(_unlabelled(joined), claims, joined)
        return joined

    def _said(self, part: PartialLabels, window: Window) -> NDArray[Any]:
        """Return a part's claims; of classes that exclude each other, one that is there denies the others."""
        claims = part._claims(window)
        if self.soft or self.task.planes > 1:
            return claims
        return np.where((claims == IGNORE) & (claims == 1).any(axis=0), np.int16(0), claims)

    def _refuse(self) -> None:
        """Say of the whole scene where sources contradict each other."""
        names = [*(one.name for one in self.task.classes), BACKGROUND]
        pixels: Counter[tuple[int, int]] = Counter()
        about: dict[tuple[int, int], set[int]] = {}
        for window in self.grid.tiles(COUNT_WINDOW):
            said = [self._said(part, window) for part in self.parts]
            for pair in itertools.combinations(range(len(said)), 2):
                differ = _differ(said[pair[0]], said[pair[1]])
                pixels[pair] += int(differ.any(axis=0).sum())
                about.setdefault(pair, set()).update(np.flatnonzero(differ.any(axis=(1, 2))).tolist())
        (one, other), count = pixels.most_common(1)[0]
        those = ", ".join(names[place] for place in sorted(about[one, other]))
        raise LabelError(
            f"{self.parts[one].name} and {self.parts[other].name} contradict each other on {count} pixels (about "
            f"{those}); correct one of them, or let only one speak for a class (labels.classes); polygons that say "
            "nothing of the rest have outside: ignore"
        )


def _unlabelled(claims: NDArray[Any]) -> NDArray[np.bool_]:
    unsaid: NDArray[np.bool_] = np.isnan(claims) if claims.dtype.kind == "f" else claims == IGNORE
    return unsaid


def _differ(claims: NDArray[Any], others: NDArray[Any]) -> NDArray[np.bool_]:
    """Say where both know, and not the same."""
    differ: NDArray[np.bool_] = np.abs(claims - others) > (SLACK if claims.dtype.kind == "f" else 0)
    return differ & ~_unlabelled(claims) & ~_unlabelled(others)
