"""Labels as targets: class codes, 0/1 masks and cover fractions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from segkit.errors import LabelError
from segkit.task.classes import BACKGROUND
from segkit.task.declaration import IGNORE, TaskDeclaration
from segkit.task.unique import unique_codes

SUM_TOLERANCE = 0.01  # how far the fractions of a pixel may be from adding up to 1
_TIE_TOLERANCE = 1e-6  # fractions that differ by less are equal: rounding of float32
# What a label code means, besides the position of a class.
_BACKGROUND, _UNLABELLED, _UNDEFINED = -1, -2, -3


class LabelEncoding(TaskDeclaration):
    """The methods of `Task` that turn labels into targets."""

    def encode(
        self,
        codes: NDArray[np.integer[Any]],
        *,
        ignore: Iterable[int] = (),
        values: Mapping[int, str | None] | None = None,
        source: object = "labels",
        pixels: NDArray[np.integer[Any]] | None = None,
    ) -> NDArray[np.int16]:
        """Turn label codes into targets.

        Parameters
        ----------
        codes
            Integers (H, W): class values, the code of background, or one of `ignore`.
        ignore
            Codes of unlabelled pixels; they take precedence over the code of background.
        values
            {code: class name, "background", or None for unlabelled}; replaces the values of the classes and of
            background, and takes precedence over `ignore`.
        source
            Named in errors.
        pixels
            Number of pixels that each code stands for, (H, W), for the counts in errors. Default: 1.

        Returns
        -------
        int16 (T, H, W); `IGNORE` where unlabelled

        Raises
        ------
        LabelError
            A code is not defined. It is never counted as another class.
        """
        position = self._class_positions(codes, ignore, values, None, source, pixels)
        if self.type == "multilabel":
            each = np.arange(self.n_targets, dtype=np.int16)[:, None, None]
            return np.where(position == _UNLABELLED, IGNORE, position == each).astype(np.int16)
        category = np.where(position == _UNLABELLED, IGNORE, position + bool(self.background))
        return category.astype(np.int16)[None]

    def partial_labels(
        self,
        codes: NDArray[np.integer[Any]],
        *,
        ignore: Iterable[int] = (),
        values: Mapping[int, str | None] | None = None,
        classes: Sequence[str] | None = None,
        source: object = "labels",
        pixels: NDArray[np.integer[Any]] | None = None,
    ) -> NDArray[np.int16]:
        """Turn label codes into partial labels: int16 (k, H, W), per class 1 present, 0 absent, `IGNORE` unlabelled.

        Parameters
        ----------
        codes, ignore, values, source, pixels
            As for `encode`.
        classes
            The classes that these labels cover, by default all. Pixels with the code of background are 0 in these
            classes and `IGNORE` in the others.

        Raises
        ------
        LabelError
            As for `encode`, or a code is that of a class not in `classes`.
        """
        position = self._class_positions(codes, ignore, values, classes, source, pixels)
        partial_labels = np.full((len(self.classes), *codes.shape), IGNORE, dtype=np.int16)
        for covered in self._covered_positions(classes):
            partial_labels[covered] = np.where(position == _UNLABELLED, IGNORE, position == covered)
        return partial_labels

    def _class_positions(
        self,
        codes: NDArray[np.integer[Any]],
        ignore: Iterable[int],
        values: Mapping[int, str | None] | None,
        classes: Sequence[str] | None,
        source: object,
        pixels: NDArray[np.integer[Any]] | None,
    ) -> NDArray[np.int16]:
        """Return the position of each code's class, (H, W); `_BACKGROUND` or `_UNLABELLED` for other codes."""
        names = {BACKGROUND: _BACKGROUND} if self.allows_no_class else {}
        names |= {one.name: position for position, one in enumerate(self.classes)}
        if values is not None:
            table = {code: _UNLABELLED if name is None else names[name] for code, name in values.items()}
        else:
            table = {self.background_value: _BACKGROUND} if self.allows_no_class else {}
            table |= {one.value: position for position, one in enumerate(self.classes)}
        ignored = {int(code): _UNLABELLED for code in ignore}
        meaning = table | ignored if values is None else ignored | table

        allowed = {_UNLABELLED, _BACKGROUND, *self._covered_positions(classes)}
        defined = ", ".join(map(str, sorted(code for code, position in table.items() if position in allowed)))
        found, inverse = unique_codes(codes)
        position = np.array([meaning.get(int(code), _UNDEFINED) for code in found], dtype=np.int16)
        if (refused := found[position == _UNDEFINED]).size:
            what, key = ("the task", "task.classes") if values is None else ("labels.values",) * 2
            hint = ""
            if 0 in refused and not self.allows_no_class and values is None:
                hint = " (if 0 means unlabelled), or set task.background: true (if 0 means no class)"
            raise LabelError(
                f"{source}: code {_list_codes(codes, refused, pixels)} is not defined, {what} defines {defined}; "
                f"add it to {key} or to data.ignore{hint}"
            )
        if (refused := found[~np.isin(position, list(allowed))]).size:
            raise LabelError(
                f"{source}: code {_list_codes(codes, refused, pixels)} is of a class that these labels do not cover; "
                f"they cover {', '.join(classes or ())} (codes {defined}); add the class to labels.classes, or map "
                "the code in labels.values"
            )
        return position[inverse].reshape(codes.shape)

    def _covered_positions(self, classes: Sequence[str] | None) -> list[int]:
        """Return the positions of some classes, in their order; by default of all."""
        names = [one.name for one in self.classes]
        return list(range(len(names))) if classes is None else [names.index(name) for name in classes]

    def encode_masks(
        self, masks: NDArray[np.integer[Any]], *, ignore: Iterable[int] = (), source: object = "labels"
    ) -> NDArray[np.int16]:
        """Turn one 0/1 mask per class, (k, H, W) in class order, into targets (T, H, W).

        Raises
        ------
        LabelError
            The number of masks is not the number of classes, a value is neither 0, 1 nor in `ignore`, or mutually
            exclusive classes overlap.
        """
        present = self.partial_labels_from_masks(masks, ignore=ignore, source=source)
        if self.type == "multilabel":
            return present
        labelled, is_class = (present != IGNORE).all(axis=0), present == 1
        overlap = is_class.sum(axis=0) > 1
        if overlap.any():
            raise LabelError(
                f"{source}: {int(overlap.sum())} pixels are in several classes, which a {self.type} task does not "
                "allow; correct the labels, or use type multilabel"
            )
        in_a_class = is_class.any(axis=0)
        otherwise = 0 if self.background else IGNORE
        category = np.where(in_a_class, is_class.argmax(axis=0) + bool(self.background), otherwise)
        return np.where(labelled | in_a_class, category, IGNORE).astype(np.int16)[None]

    def partial_labels_from_masks(
        self,
        masks: NDArray[np.integer[Any]],
        *,
        ignore: Iterable[int] = (),
        classes: Sequence[str] | None = None,
        source: object = "labels",
    ) -> NDArray[np.int16]:
        """Turn one 0/1 mask for each of some classes, in their order, into what `partial_labels` returns.

        Raises
        ------
        LabelError
            The number of masks is not that of the classes, or a value is neither 0, 1 nor in `ignore`.
        """
        positions = self._covered_positions(classes)
        if len(masks) != len(positions):
            names = ", ".join(self.classes[position].name for position in positions)
            what = "the task has" if classes is None else "these labels cover"
            raise LabelError(
                f"{source}: {len(masks)} bands, but {what} {len(positions)} classes ({names}); give one 0/1 band per "
                "class, in this order"
            )
        unlabelled = np.isin(masks, list(ignore))
        if (refused := np.setdiff1d(masks[~unlabelled], [0, 1])).size:
            raise LabelError(
                f"{source}: code {_list_codes(masks, refused)} is neither 0 nor 1, the only codes in a raster of one "
                "band per class; add it to data.ignore, or give one band of class values"
            )
        partial_labels = np.full((len(self.classes), *masks.shape[1:]), IGNORE, dtype=np.int16)
        partial_labels[positions] = np.where(unlabelled, np.int16(IGNORE), masks.astype(np.int16))
        return partial_labels

    def encode_fractions(
        self,
        fractions: NDArray[np.floating[Any]],
        *,
        rest: Literal["background", "ignore"] | None = None,
        tolerance: float = SUM_TOLERANCE,
        source: object = "labels",
    ) -> NDArray[np.float32]:
        """Turn cover fractions into soft targets.

        Overlapping classes are independent of each other. Mutually exclusive classes share a pixel: a sum within
        `tolerance` of 1 is scaled to 1, and unlabelled fractions of such a pixel are 0. If all fractions are labelled
        and the sum is lower, `rest` decides. All other pixels are unlabelled.

        Parameters
        ----------
        fractions
            0..1, (k + 1, H, W): of each class, then of background; NaN where unlabelled.
        rest
            What the rest of a pixel is that no class covers. "background": background (the default if the task has
            background and its own fraction is unlabelled). "ignore": the whole pixel is unlabelled.
        tolerance
            How far a sum may be from 1.
        source
            Named in errors.

        Returns
        -------
        float32 (C, H, W); `IGNORE` where unlabelled

        Raises
        ------
        LabelError
            Mutually exclusive classes cover more than a pixel, or less and `rest` does not say what the rest is.
        """
        if self.type == "multilabel":
            of_classes = fractions[:-1]
            return np.where(np.isnan(of_classes), IGNORE, of_classes).astype(np.float32)
        labelled, shares = ~np.isnan(fractions), np.nan_to_num(fractions.astype(np.float64))
        total = shares.sum(axis=0)
        complete = total >= 1 - tolerance
        incomplete = labelled[:-1].all(axis=0) & ~complete
        filled = np.zeros_like(complete)
        if self.background and rest != "ignore":
            filled = labelled[:-1].all(axis=0) & ~labelled[-1] & (total <= 1)
            shares[-1] += np.where(filled, 1 - total, 0)
            incomplete &= ~filled
        if rest == "ignore":
            incomplete[:] = False
        _check_sums(total, incomplete, tolerance, source)
        shares /= np.where(complete & ~filled, total, 1)
        shares = np.where(complete | filled, shares, IGNORE)
        categories = (shares[-1:], shares[:-1]) if self.background else (shares[:-1],)
        return np.concatenate(categories)[[category for _, category in self.channel_categories]].astype(np.float32)

    def harden(self, targets: NDArray[Any]) -> NDArray[np.int16]:
        """Turn soft targets into the nearest targets; targets are returned as they are.

        An overlapping class is present where it covers at least half of a pixel. Of mutually exclusive classes the one
        with the largest fraction is taken, for both heads; of equal ones the first, and background last.

        Parameters
        ----------
        targets
            float (..., C, H, W) or integer (..., T, H, W); `IGNORE` where unlabelled.

        Returns
        -------
        int16 (..., T, H, W)
        """
        if targets.dtype.kind != "f":
            return targets.astype(np.int16, copy=False)
        labelled = targets != IGNORE
        if self.type == "multilabel":
            return np.where(labelled, targets >= 0.5 - _TIE_TOLERANCE, IGNORE).astype(np.int16)
        first = 1 if self.background else 0
        classes = targets[..., first if self.channels > len(self.classes) else 0 :, :, :]
        shares = [classes]
        if self.background:
            shares.append(1 - classes.sum(axis=-3, keepdims=True) - _TIE_TOLERANCE)
        best = np.concatenate(shares, axis=-3).argmax(axis=-3, keepdims=True)
        category = np.where(best == len(self.classes), 0, best + first)
        return np.where(labelled.all(axis=-3, keepdims=True), category, IGNORE).astype(np.int16)


def _check_sums(
    total: NDArray[np.floating[Any]], incomplete: NDArray[np.bool_], tolerance: float, source: object
) -> None:
    """Refuse fractions of mutually exclusive classes that add up to more than 1, or to less where that is an error."""
    for wrong, rule in (
        (
            total > 1 + tolerance,
            "mutually exclusive classes cover at most 1; correct them, or use type multilabel",
        ),
        (
            incomplete,
            (
                "the rest of the pixel is not defined; set labels.outside_polygons: ignore if it is unlabelled, or "
                "correct the fractions"
            ),
        ),
    ):
        if wrong.any():
            worst = total[wrong][np.abs(total[wrong] - 1).argmax()]
            raise LabelError(f"{source}: fractions add up to {worst:.4g} ({int(wrong.sum())} pixels); {rule}")


def _list_codes(
    codes: NDArray[Any], selected: NDArray[Any], pixels: NDArray[Any] | None = None, maximum: int = 5
) -> str:
    """List selected codes, each with its number of pixels."""
    each = np.ones_like(codes) if pixels is None else pixels
    counts = ", ".join(f"{int(code)} ({int(each[codes == code].sum())} pixels)" for code in selected[:maximum])
    return counts + (f" and {selected.size - maximum} more" if selected.size > maximum else "")
