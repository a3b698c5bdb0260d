"""Task: the one declaration that fixes channels, activation, loss, target, metrics and decision.

A task is seen through *planes* and *categories*. An exclusive task (binary, multiclass) has one plane whose pixels
belong to one of several categories; a multilabel task has one plane per class, with the categories "absent" and
"present". Every output channel of a network speaks for one category of one plane, and so every rule below is one
formula over planes, whatever the type.

Target planes are int16 (P, H, W) or (N, P, H, W): the category's index, or `IGNORE` where it is not known. Soft
planes, made of cover fractions, are float32 (C, H, W) or (N, C, H, W): the share of each channel's category, or
`IGNORE`.
Tensors are torch's; torch itself is imported by whoever makes them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from segkit.errors import LabelError, TaskError
from segkit.task.unique import distinct

if TYPE_CHECKING:
    from torch import Tensor

IGNORE = -1
BACKGROUND = "background"
SLACK = 0.01  # how far fractions that add up to 1 may be from it
_EQUAL = 1e-6  # shares that differ by less do so by the rounding of float32
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

    @property
    def open_thresholds(self) -> tuple[bool, ...] | None:
        """Whether each class's threshold is left to be chosen; None where the highest probability decides."""
        return None if self.thresholds is None else tuple(one.threshold is None for one in self.classes)

    def with_thresholds(self, values: Sequence[float]) -> Task:
        """Return this task with the thresholds of its classes, in their order.

        Raises
        ------
        TaskError
            The task cannot decide by threshold, or a value does not lie between 0 and 1.
        """
        pairs = zip(self.classes, values, strict=True)
        return replace(self, classes=tuple(replace(one, threshold=value) for one, value in pairs))

    def encode(
        self,
        codes: NDArray[np.integer[Any]],
        *,
        ignore: Iterable[int] = (),
        values: Mapping[int, str | None] | None = None,
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
        values
            Stands for the classes' values and background's code, and wins over `ignore`: {code: class name,
            "background", or None for "not known"}.
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
        position = self._positions(codes, ignore, values, None, source, pixels)
        if self.type == "multilabel":
            each = np.arange(self.planes, dtype=np.int16)[:, None, None]
            return np.where(position == -2, IGNORE, position == each).astype(np.int16)
        return np.where(position == -2, IGNORE, position + bool(self.background)).astype(np.int16)[None]

    def claims(
        self,
        codes: NDArray[np.integer[Any]],
        *,
        ignore: Iterable[int] = (),
        values: Mapping[int, str | None] | None = None,
        classes: Sequence[str] | None = None,
        source: object = "labels",
        pixels: NDArray[np.integer[Any]] | None = None,
    ) -> NDArray[np.int16]:
        """Turn label codes into what they say of each class: int16 (k, H, W) of 1, 0, or `IGNORE` for nothing.

        Parameters
        ----------
        codes, ignore, values, source, pixels
            As for `encode`.
        classes
            Those that the codes speak for, by default all. Background's code denies these, and no others.

        Raises
        ------
        LabelError
            As for `encode`, and for the code of a class that is not among `classes`.
        """
        position = self._positions(codes, ignore, values, classes, source, pixels)
        claims = np.full((len(self.classes), *codes.shape), IGNORE, dtype=np.int16)
        for place in self._places(classes):
            claims[place] = np.where(position == -2, IGNORE, position == place)
        return claims

    def _positions(
        self,
        codes: NDArray[np.integer[Any]],
        ignore: Iterable[int],
        values: Mapping[int, str | None] | None,
        classes: Sequence[str] | None,
        source: object,
        pixels: NDArray[np.integer[Any]] | None,
    ) -> NDArray[np.int16]:
        """Return the position of each code's class, (H, W); -1 for background, -2 for "not known"."""
        names = ({BACKGROUND: -1} if self.has_none else {}) | {one.name: i for i, one in enumerate(self.classes)}
        not_known, unknown = -2, -3
        own = {self.background_value: -1} if self.has_none else {}
        own |= {one.value: position for position, one in enumerate(self.classes)}
        index = {int(code): not_known for code in ignore}
        if values is not None:
            own = {code: not_known if name is None else names[name] for code, name in values.items()}
            index |= own
        else:
            index = own | index
        spoken = {not_known, -1, *self._places(classes)}
        known = sorted(code for code, position in own.items() if position in spoken)
        found, inverse = distinct(codes)
        position = np.array([index.get(int(code), unknown) for code in found], dtype=np.int16)
        if (refused := found[position == unknown]).size:
            where, room = ("the task", "task.classes") if values is None else ("labels.values",) * 2
            hint = ""
            if 0 in refused and not self.has_none and values is None:
                hint = "; where 0 means that nobody looked, data.ignore, where it means no class, task.background: true"
            raise LabelError(
                f"{source}: code {_counted(codes, refused, pixels)} is not in {where}, which knows "
                f"{', '.join(map(str, known))}; list it under {room} or data.ignore{hint}"
            )
        if (refused := found[~np.isin(position, list(spoken))]).size:
            raise LabelError(
                f"{source}: code {_counted(codes, refused, pixels)} is of a class that these labels do not speak for "
                f"({', '.join(classes or ())}, known codes {', '.join(map(str, known))}); add it to labels.classes, or "
                "say under labels.values what the code means here"
            )
        return position[inverse].reshape(codes.shape)

    def _places(self, classes: Sequence[str] | None) -> list[int]:
        """Return the positions of some classes, in their order; of all by default."""
        names = [one.name for one in self.classes]
        return list(range(len(names))) if classes is None else [names.index(name) for name in classes]

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
        present = self.claims_of_masks(masks, ignore=ignore, source=source)
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

    def claims_of_masks(
        self,
        masks: NDArray[np.integer[Any]],
        *,
        ignore: Iterable[int] = (),
        classes: Sequence[str] | None = None,
        source: object = "labels",
    ) -> NDArray[np.int16]:
        """Turn one 0/1 mask for each of some classes, in their order, into what `claims` returns.

        Raises
        ------
        LabelError
            The number of masks is not that of the classes, or a value is neither 0, 1 nor in `ignore`.
        """
        places = self._places(classes)
        if len(masks) != len(places):
            whose = "the task has" if classes is None else "these labels speak for"
            raise LabelError(
                f"{source}: {len(masks)} bands, {whose} {len(places)} classes "
                f"({', '.join(self.classes[place].name for place in places)}); give one 0/1 band per class, in this "
                "order"
            )
        not_known = np.isin(masks, list(ignore))
        if (refused := np.setdiff1d(masks[~not_known], [0, 1])).size:
            raise LabelError(
                f"{source}: code {_counted(masks, refused)} is neither 0 nor 1, which is all that a band per class "
                "holds; list it under data.ignore, or give one band of class values"
            )
        claims = np.full((len(self.classes), *masks.shape[1:]), IGNORE, dtype=np.int16)
        claims[places] = np.where(not_known, np.int16(IGNORE), masks.astype(np.int16))
        return claims

    def encode_fractions(
        self,
        fractions: NDArray[np.floating[Any]],
        *,
        rest: Literal["background", "ignore"] | None = None,
        slack: float = SLACK,
        source: object = "labels",
    ) -> NDArray[np.float32]:
        """Turn cover fractions into soft target planes.

        Of classes that overlap, each stands for itself. Those that exclude each other share a pixel: a sum that misses
        1 by no more than `slack` is made 1, and what is not known beside such a sum is 0. Where all is known and the
        sum is lower, `rest` decides. All other pixels are not known.

        Parameters
        ----------
        fractions
            0..1, (k + 1, H, W): of each class, then of background; NaN where not known.
        rest
            What the part of a pixel is that no class covers: "background", which is the default where the task has it
            and its own fraction is not known, or "ignore": the whole pixel is not known.
        slack
            How far a sum may be from 1.
        source
            Named in errors.

        Returns
        -------
        float32 (C, H, W); `IGNORE` where not known

        Raises
        ------
        LabelError
            Classes that exclude each other cover more than a pixel, or less where nothing says what the rest is.
        """
        if self.type == "multilabel":
            own = fractions[:-1]
            return np.where(np.isnan(own), IGNORE, own).astype(np.float32)
        known, shares = ~np.isnan(fractions), np.nan_to_num(fractions.astype(np.float64))
        total = shares.sum(axis=0)
        whole = total >= 1 - slack
        open_rest = known[:-1].all(axis=0) & ~whole
        filled = np.zeros_like(whole)
        if self.background and rest != "ignore":
            filled = known[:-1].all(axis=0) & ~known[-1] & (total <= 1)
            shares[-1] += np.where(filled, 1 - total, 0)
            open_rest &= ~filled
        for wrong, rule in (
            (
                total > 1 + slack,
                "classes that exclude each other cover at most 1; correct them, or use type multilabel",
            ),
            (
                open_rest & (rest != "ignore"),
                "nothing says what the rest of the pixel is; set labels.outside: ignore where that is not known, or "
                "correct the fractions",
            ),
        ):
            if wrong.any():
                far = total[wrong][np.abs(total[wrong] - 1).argmax()]
                raise LabelError(
                    f"{source}: fractions add up to {far:.4g} and such on {int(wrong.sum())} pixels; {rule}"
                )
        shares /= np.where(whole & ~filled, total, 1)
        shares = np.where(whole | filled, shares, IGNORE)
        categories = (shares[-1:], shares[:-1]) if self.background else (shares[:-1],)
        return np.concatenate(categories)[[category for _, category in self.speaks_for]].astype(np.float32)

    def settle(self, planes: NDArray[Any]) -> NDArray[np.int16]:
        """Turn soft planes into the target planes that they come nearest to; target planes are returned as they are.

        A class that overlaps others is present where it covers half of a pixel. Where classes exclude each other, the
        one that covers most is taken, whatever the head; of several the first, and background last.

        Parameters
        ----------
        planes
            float (..., C, H, W) or integer (..., P, H, W); `IGNORE` where not known.

        Returns
        -------
        int16 (..., P, H, W)
        """
        if planes.dtype.kind != "f":
            return planes.astype(np.int16, copy=False)
        known = planes != IGNORE
        if self.type == "multilabel":
            return np.where(known, planes >= 0.5 - _EQUAL, IGNORE).astype(np.int16)
        first = 1 if self.background else 0
        classes = planes[..., first if self.channels > len(self.classes) else 0 :, :, :]
        shares = [classes]
        if self.background:
            shares.append(1 - classes.sum(axis=-3, keepdims=True) - _EQUAL)
        best = np.concatenate(shares, axis=-3).argmax(axis=-3, keepdims=True)
        category = np.where(best == len(self.classes), 0, best + first)
        return np.where(known.all(axis=-3, keepdims=True), category, IGNORE).astype(np.int16)

    def onehot(self, planes: Tensor) -> tuple[Tensor, Tensor]:
        """Return what each channel should say, and where that is known.

        Parameters
        ----------
        planes
            Target planes, integer (N, P, H, W); or soft targets, floating (N, C, H, W): the share of a pixel that is
            of the channel's category, 0 to 1 (with softmax they sum to 1), or `IGNORE` where it is not known.

        Returns
        -------
        target
            float32 (N, C, H, W), 0 to 1; 0 where it is not known.
        valid
            bool (N, C, H, W). With softmax a pixel's channels are known together or not at all.
        """
        if planes.is_floating_point():
            assert planes.shape[1] == self.channels
            valid = planes >= 0
            if self.head == "softmax":
                valid = valid.all(dim=1, keepdim=True).expand_as(planes)
            return planes.float().masked_fill(~valid, 0.0), valid
        plane = planes[:, [p for p, _ in self.speaks_for]]
        category = planes.new_tensor([c for _, c in self.speaks_for]).view(1, -1, 1, 1)
        return (plane == category).float(), plane != IGNORE

    def smoothed(self, planes: Tensor, smoothing: float) -> Tensor:
        """Spread a share of each known target over what the decision is between (Szegedy et al. 2016, section 7).

        Parameters
        ----------
        planes
            As for `onehot`.
        smoothing
            The share, 0 to 1. With softmax the decision is between all channels, with sigmoid between is and is not.

        Returns
        -------
        Soft targets, float32 (N, C, H, W), `IGNORE` where they are not known.
        """
        target, valid = self.onehot(planes)
        among = self.channels if self.head == "softmax" else 2
        return (target * (1 - smoothing) + smoothing / among).masked_fill(~valid, IGNORE)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Turn logits (N, C, H, W) into float32 probabilities of the same shape."""
        return logits.float().softmax(dim=1) if self.head == "softmax" else logits.float().sigmoid()

    def logits(self, probabilities: Tensor) -> Tensor:
        """Turn probabilities (N, C, H, W) above 0 and below 1 into logits that say the same."""
        return probabilities.log() if self.head == "softmax" else probabilities.logit()

    @property
    def channels_compete(self) -> bool:
        """Whether the channels' probabilities sum to 1 (softmax), or each stands for itself (sigmoid)."""
        return self.head == "softmax"

    def pixel_terms(
        self, logits: Tensor, planes: Tensor, weights: Sequence[float] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the negative log-likelihood of each category and its weight.

        Activation and logarithm are fused (log-softmax, log-sigmoid), so nothing saturates. A pixel that is shared by
        categories counts as that share of a pixel of each. The gradient of a pixel's weighted sum at the logits is
        p - target for both heads where all weights are 1.

        Parameters
        ----------
        logits
            (N, C, H, W); under ignored pixels they may be anything, NaN too.
        planes
            Targets, as for `onehot`.
        weights
            One per channel, for pixels of its category; a sigmoid channel's other pixels weigh 1. Default: all 1.

        Returns
        -------
        terms
            float32 (N, Q, H, W), finite: -log p of the C channels for softmax (summed it is cross-entropy); for sigmoid
            those of "is" of all channels, then those of "is not" (binary cross-entropy).
        weight
            float32 of the same shape: share of the category times its weight; 0 where the label is not known.
        """
        import torch  # loaded long since by whoever made the tensors

        target, valid = self.onehot(planes)
        logits = logits.float().masked_fill(~valid, 0.0)
        weight = target.new_tensor([1.0] * self.channels if weights is None else list(weights)).view(1, -1, 1, 1)
        if self.head == "softmax":
            return -logits.log_softmax(dim=1), target * weight
        log_sigmoid = torch.nn.functional.logsigmoid
        terms = -torch.cat([log_sigmoid(logits), log_sigmoid(-logits)], dim=1)
        return terms, torch.cat([target * weight, valid * (1 - target)], dim=1)

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
