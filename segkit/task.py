"""Task: the one declaration that fixes channels, activation, loss, target, metrics and decision.

A task is seen through *planes* and *categories*. An exclusive task (binary, multiclass) has one plane whose pixels
belong to one of several categories; a multilabel task has one plane per class, with the categories "absent" and
"present". Every output channel of a network speaks for one category of one plane, and so every rule below is one
formula over planes, whatever the type.

Target planes are int16 (P, H, W) or (N, P, H, W): the category's index, or `IGNORE` where it is not known.
Tensors are torch's; torch itself is imported by whoever makes them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from segkit.errors import LabelError, TaskError

if TYPE_CHECKING:
    from torch import Tensor

IGNORE = -1
BACKGROUND = "background"
_HIGHEST_VALUE = 65_534  # 65535 is the no-data value of 16-bit maps

# Okabe and Ito's colours, told apart by colour-blind readers too (https://jfly.uni-koeln.de/color/), then Tol's muted.
_PALETTE = (
    *("#d55e00", "#0072b2", "#009e73", "#e69f00", "#56b4e9", "#cc79a7", "#f0e442"),
    *("#332288", "#88ccee", "#117733", "#999933", "#ddcc77", "#882255", "#aa4499", "#44aa99"),
)
_BACKGROUND_COLOR = "#e8e8e8"


@dataclass(frozen=True)
class LandClass:
    """One class of a task.

    Parameters
    ----------
    name
        Shown in maps, layers and metrics.
    value
        Its code in label rasters and in the map, 0 to 65534.
    color
        "#rrggbb"; without one the task gives a colour from a palette that colour-blind readers can tell apart.
    threshold
        Probability from which the class is decided; only where the head decides by threshold (see `Task`).
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: str
    value: int
    color: str | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise TaskError("a class has an empty name; give each class a name")
        if not 0 <= self.value <= _HIGHEST_VALUE:
            raise TaskError(
                f"class {self.name!r} has value {self.value}; values are integers from 0 to {_HIGHEST_VALUE}"
            )
        if self.color is not None and not re.fullmatch("#[0-9a-fA-F]{6}", self.color):
            raise TaskError(f"class {self.name!r} has color {self.color!r}; write it as '#rrggbb'")
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise TaskError(f"class {self.name!r} has threshold {self.threshold}; it lies between 0 and 1")


@dataclass(frozen=True)
class Task:
    """What is mapped, and everything that follows from it.

    ==========================  =======  =========  ==========================================================
    type                        head     channels   decision
    ==========================  =======  =========  ==========================================================
    binary                      softmax  2          argmax, or p(class) >= threshold
    binary                      sigmoid  1          p >= threshold
    multiclass                  softmax  k+1        argmax; background is channel 0
    multiclass, no background   softmax  k          argmax
    multiclass                  sigmoid  k          highest p of those at their threshold, else background
    multiclass, no background   sigmoid  k          highest p
    multilabel                  sigmoid  k          p_c >= threshold_c, for each class
    ==========================  =======  =========  ==========================================================

    Parameters
    ----------
    type
        "binary" (one class and background), "multiclass" (classes exclude each other) or "multilabel" (they overlap).
    classes
        In the order of the channels.
    head
        "softmax" or "sigmoid"; by default softmax where classes exclude each other, sigmoid where they do not.
    background
        Multiclass only: whether pixels may belong to none of the classes. True by default.
    background_value
        Code of "none of the classes" in label rasters and in the map.

    Raises
    ------
    TaskError
        The declaration contradicts itself.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    type: Literal["binary", "multiclass", "multilabel"]
    classes: tuple[LandClass, ...]
    head: Literal["softmax", "sigmoid"] | None = None
    background: bool | None = None
    background_value: int = 0

    def __post_init__(self) -> None:
        if self.type not in ("binary", "multiclass", "multilabel"):
            raise TaskError(f"task type {self.type!r} is not known; use binary, multiclass or multilabel")
        if self.head not in (None, "softmax", "sigmoid"):
            raise TaskError(f"head {self.head!r} is not known; use softmax or sigmoid")
        object.__setattr__(self, "classes", tuple(self.classes))
        if self.head is None:
            object.__setattr__(self, "head", "sigmoid" if self.type == "multilabel" else "softmax")
        if self.background is None:
            object.__setattr__(self, "background", self.type != "multilabel")
        self._check_classes()
        self._check_pairing()

    def _check_classes(self) -> None:
        if not self.classes:
            raise TaskError("the task has no classes; list at least one under task.classes")
        if self.type == "binary" and len(self.classes) != 1:
            raise TaskError(
                f"a binary task has one class beside background, found {len(self.classes)}; "
                "use type multiclass for classes that exclude each other, multilabel for overlapping ones"
            )
        if self.type == "multiclass" and not self.background and len(self.classes) < 2:
            raise TaskError("a multiclass task without background needs at least two classes")
        for what in ("name", "value"):
            seen = [getattr(one, what) for one in self.classes]
            for twice in sorted({one for one in seen if seen.count(one) > 1}):
                raise TaskError(f"two classes have the {what} {twice!r}; each class has its own")
        if not 0 <= self.background_value <= _HIGHEST_VALUE:
            raise TaskError(f"background_value is {self.background_value}; it lies between 0 and {_HIGHEST_VALUE}")
        for one in self.classes:
            if self.has_none and one.value == self.background_value:
                without = ", or task.background: false if there is none" if self.type == "multiclass" else ""
                raise TaskError(
                    f"class {one.name!r} has the value {one.value}, which is background's; "
                    f"set task.background_value to background's code{without}"
                )
            if self.background and one.name == BACKGROUND:
                raise TaskError("'background' is not listed as a class: it is added by the task; remove it")

    def _check_pairing(self) -> None:
        if self.type == "multilabel" and self.head == "softmax":
            raise TaskError(
                "softmax makes classes exclude each other, multilabel classes overlap; "
                "use head sigmoid, or type multiclass"
            )
        if self.type == "multilabel" and self.background:
            raise TaskError(
                "multilabel has no background class: a pixel is in none where no class is; remove background"
            )
        if self.type == "binary" and not self.background:
            raise TaskError("a binary task decides between its class and background; remove background: false")
        if not self._by_threshold:
            for one in self.classes:
                if one.threshold is not None:
                    raise TaskError(
                        f"class {one.name!r} has a threshold, but this task decides for the highest probability; "
                        "remove it, or use head sigmoid with background"
                    )

    @property
    def has_none(self) -> bool:
        """Whether a pixel may be in no class at all."""
        return self.type == "multilabel" or bool(self.background)

    @property
    def _by_threshold(self) -> bool:
        return self.has_none and (self.head == "sigmoid" or self.type == "binary")

    @functools.cached_property
    def planes(self) -> int:
        """Number of independent decisions at a pixel: 1 where classes exclude each other, else one per class."""
        return len(self.classes) if self.type == "multilabel" else 1

    @functools.cached_property
    def categories(self) -> tuple[str, ...]:
        """Names of what a pixel of a plane can be, in index order."""
        if self.type == "multilabel":
            return ("absent", "present")
        return ((BACKGROUND,) if self.background else ()) + tuple(one.name for one in self.classes)

    @functools.cached_property
    def speaks_for(self) -> tuple[tuple[int, int], ...]:
        """(plane, category) of each channel."""
        if self.type == "multilabel":
            return tuple((plane, 1) for plane in range(self.planes))
        first = 1 if self.head == "sigmoid" and self.background else 0
        return tuple((0, category) for category in range(first, len(self.categories)))

    @property
    def channels(self) -> int:
        """Output channels of the network."""
        return len(self.speaks_for)

    @property
    def channel_names(self) -> tuple[str, ...]:
        """What each channel's probability is about."""
        return tuple(
            self.classes[plane].name if self.type == "multilabel" else self.categories[category]
            for plane, category in self.speaks_for
        )

    @property
    def scored(self) -> tuple[tuple[str, int, int], ...]:
        """(name, plane, category) of everything that has an IoU: classes, and background where it is a category."""
        if self.type == "multilabel":
            return tuple((one.name, plane, 1) for plane, one in enumerate(self.classes))
        return tuple((name, 0, category) for category, name in enumerate(self.categories))

    @property
    def thresholds(self) -> tuple[float, ...] | None:
        """Threshold of each class, or None where the highest probability decides."""
        if not self._by_threshold or (self.head == "softmax" and self.classes[0].threshold is None):
            return None
        return tuple(0.5 if one.threshold is None else one.threshold for one in self.classes)

    def encode(
        self,
        codes: NDArray[np.integer[Any]],
        *,
        ignore: Iterable[int] = (),
        source: object = "labels",
        pixels: NDArray[np.integer[Any]] | None = None,
    ) -> NDArray[np.int16]:
        """Turn label codes into target planes.

        Parameters
        ----------
        codes
            Integers (H, W): class values, background's code, or one of `ignore`.
        ignore
            Codes that mean "not known"; they win over background's code.
        source
            Named in errors.
        pixels
            How many pixels each code stands for, (H, W), where that is not one; told in errors.

        Returns
        -------
        int16 (P, H, W)

        Raises
        ------
        LabelError
            A code that is none of these: it is never folded into another class.
        """
        index = {self.background_value: -1} if self.has_none else {}
        index |= {one.value: position for position, one in enumerate(self.classes)}
        known = sorted(index)
        unknown = -3
        index |= {int(code): -2 for code in ignore}
        found, inverse = np.unique(codes, return_inverse=True)
        position = np.array([index.get(int(code), unknown) for code in found], dtype=np.int16)
        if (refused := found[position == unknown]).size:
            hint = ""
            if 0 in refused and not self.has_none:
                hint = "; where 0 means that nobody looked, data.ignore, where it means no class, task.background: true"
            raise LabelError(
                f"{source}: code {_counted(codes, refused, pixels)} is not in the task, which knows "
                f"{', '.join(map(str, known))}; list it under task.classes or data.ignore{hint}"
            )
        position = position[inverse].reshape(codes.shape)
        if self.type == "multilabel":
            each = np.arange(self.planes, dtype=np.int16)[:, None, None]
            return np.where(position == -2, IGNORE, position == each).astype(np.int16)
        return np.where(position == -2, IGNORE, position + bool(self.background)).astype(np.int16)[None]

    def encode_masks(
        self, masks: NDArray[np.integer[Any]], *, ignore: Iterable[int] = (), source: object = "labels"
    ) -> NDArray[np.int16]:
        """Turn one 0/1 mask per class, (k, H, W) in class order, into target planes (P, H, W).

        Raises
        ------
        LabelError
            The number of masks is not the number of classes, a value is neither 0, 1 nor in `ignore`, or classes
            that exclude each other overlap.
        """
        if len(masks) != len(self.classes):
            raise LabelError(
                f"{source}: {len(masks)} bands, the task has {len(self.classes)} classes "
                f"({', '.join(one.name for one in self.classes)}); give one 0/1 band per class, in this order"
            )
        not_known = np.isin(masks, list(ignore))
        if (refused := np.setdiff1d(masks[~not_known], [0, 1])).size:
            raise LabelError(
                f"{source}: code {_counted(masks, refused)} is neither 0 nor 1, which is all that a band per class "
                "holds; list it under data.ignore, or give one band of class values"
            )
        present = np.where(not_known, np.int16(IGNORE), masks.astype(np.int16))
        if self.type == "multilabel":
            return present
        known, holds = (present != IGNORE).all(axis=0), present == 1
        if (holds.sum(axis=0) > 1).any():
            raise LabelError(
                f"{source}: {int((holds.sum(axis=0) > 1).sum())} pixels lie in several classes, which exclude "
                f"each other in a {self.type} task; correct the labels, or use type multilabel"
            )
        some = holds.any(axis=0)
        category = np.where(some, holds.argmax(axis=0) + bool(self.background), 0 if self.background else IGNORE)
        return np.where(known | some, category, IGNORE).astype(np.int16)[None]

    def onehot(self, planes: Tensor) -> tuple[Tensor, Tensor]:
        """Return what each channel should say, and where that is known.

        Parameters
        ----------
        planes
            Target planes, integer (N, P, H, W).

        Returns
        -------
        target
            float32 (N, C, H, W) of 0 and 1.
        valid
            bool (N, C, H, W).
        """
        plane = planes[:, [p for p, _ in self.speaks_for]]
        category = planes.new_tensor([c for _, c in self.speaks_for]).view(1, -1, 1, 1)
        return (plane == category).float(), plane != IGNORE

    def probabilities(self, logits: Tensor) -> Tensor:
        """Turn logits (N, C, H, W) into float32 probabilities of the same shape."""
        return logits.float().softmax(dim=1) if self.head == "softmax" else logits.float().sigmoid()

    def pixel_terms(
        self, logits: Tensor, planes: Tensor, weights: Sequence[float] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the negative log-likelihood of each decision and its weight.

        Activation and logarithm are fused (log-softmax, log-sigmoid), so nothing saturates. d term / d logits is
        p - target for both heads.

        Parameters
        ----------
        logits
            (N, C, H, W); under ignored pixels they may be anything, NaN too.
        planes
            Target planes, integer (N, P, H, W).
        weights
            One per channel, for pixels of its category; a sigmoid channel's other pixels weigh 1. Default: all 1.

        Returns
        -------
        terms
            float32 (N, Q, H, W), finite; Q is 1 for softmax (cross-entropy) and C for sigmoid (binary cross-entropy).
        weight
            float32 of the same shape; 0 where the label is not known.
        """
        target, valid = self.onehot(planes)
        logits = logits.float().where(valid, logits.new_zeros((), dtype=target.dtype))
        weight = target.new_tensor([1.0] * self.channels if weights is None else list(weights)).view(1, -1, 1, 1)
        if self.head == "softmax":
            terms = -(logits.log_softmax(dim=1) * target).sum(dim=1, keepdim=True)
            return terms, (target * weight).sum(dim=1, keepdim=True)
        # softplus(-z) where the class is, softplus(z) where it is not; softplus(z) = log(exp(z) + exp(0))
        terms = (logits * (1 - 2 * target)).logaddexp(logits.new_zeros(()))
        return terms, valid * (1 + target * (weight - 1))

    def decide(self, probabilities: Tensor) -> Tensor:
        """Decide each plane's category.

        Parameters
        ----------
        probabilities
            (N, C, H, W).

        Returns
        -------
        int16 (N, P, H, W), never `IGNORE`.
        """
        thresholds = self.thresholds
        if thresholds is None:
            first = self.speaks_for[0][1]
            # max() finds the same place as argmax() in a sixth of the time on a CPU.
            return (probabilities.max(dim=1, keepdim=True).indices + first).short()
        p = probabilities[:, -len(thresholds) :]  # the classes; a softmax over two has background before
        reached = p >= p.new_tensor(thresholds).view(1, -1, 1, 1)
        if self.planes > 1:
            return reached.short()
        best = p.where(reached, -p.new_ones(())).max(dim=1, keepdim=True).indices + 1
        return (best * reached.any(dim=1, keepdim=True)).short()

    def confidence(self, probabilities: Tensor, planes: Tensor) -> Tensor:
        """Return the probability of what was decided, float32 (N, P, H, W).

        Where a head has no channel for a category (background of a sigmoid head, "absent" of a multilabel plane), its
        probability is one minus the highest of the plane's channels.
        """
        if self.head == "softmax":
            return probabilities.gather(1, planes.long())
        if self.planes > 1:
            return probabilities.where(planes == 1, 1 - probabilities)
        first = self.speaks_for[0][1]
        own = probabilities.gather(1, (planes.long() - first).clamp(min=0))
        return own.where(planes >= first, 1 - probabilities.amax(dim=1, keepdim=True))

    @functools.cached_property
    def nodata(self) -> int:
        """The map's no-data value: 255, or 65535 where a class needs 255 or more."""
        if self.type == "multilabel":
            return 255
        return 255 if max(self._values) < 255 else 65535

    @property
    def dtype(self) -> np.dtype[Any]:
        """The map's data type."""
        return np.dtype("uint8" if self.nodata == 255 else "uint16")

    @functools.cached_property
    def _values(self) -> tuple[int, ...]:
        """What is written for each category of a plane."""
        if self.type == "multilabel":
            return (0, 1)
        return ((self.background_value,) if self.background else ()) + tuple(one.value for one in self.classes)

    @property
    def band_names(self) -> tuple[str, ...]:
        """Descriptions of the map's bands, one per plane."""
        return tuple(one.name for one in self.classes) if self.type == "multilabel" else ("class",)

    def map_values(self, planes: NDArray[np.integer[Any]], valid: NDArray[np.bool_]) -> NDArray[Any]:
        """Turn decided planes (P, H, W) into the map's values, no data where `valid` (H, W) is false."""
        values = np.array(self._values, dtype=self.dtype)[planes]
        return np.where(valid, values, np.array(self.nodata, dtype=self.dtype))

    @property
    def colors(self) -> dict[int, str] | None:
        """{value: "#rrggbb"} of a map that is one band; None where it has several."""
        if self.planes > 1:
            return None
        rows = zip(self.scored, self.legend, strict=True)
        return {self._values[category]: row["color"] for (_, _, category), row in rows}

    @functools.cached_property
    def legend(self) -> tuple[dict[str, Any], ...]:
        """Class table of the map: name, value and "#rrggbb" color; background's row, where there is one, is marked."""
        none = {"name": BACKGROUND, "value": self.background_value, "color": _BACKGROUND_COLOR, "background": True}
        return ((none,) if self.background else ()) + tuple(
            {"name": one.name, "value": one.value, "color": one.color or _PALETTE[position % len(_PALETTE)]}
            for position, one in enumerate(self.classes)
        )


def _counted(codes: NDArray[Any], some: NDArray[Any], pixels: NDArray[Any] | None = None) -> str:
    """List some codes with their pixels."""
    each = np.ones_like(codes) if pixels is None else pixels
    counts = ", ".join(f"{int(code)} ({int(each[codes == code].sum())} pixels)" for code in some[:5])
    return counts + (f" and {some.size - 5} more" if some.size > 5 else "")
