"""What a task says about overlapping classes: which never share a pixel, and which imply others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segkit.errors import TaskError

if TYPE_CHECKING:
    from segkit.task.declaration import TaskDeclaration

_ABSENT, _PRESENT = 0, 1  # categories of overlapping classes


@dataclass(frozen=True)
class Relation:
    """A rule about two overlapping classes.

    Parameters
    ----------
    one, other
        Their positions.
    implied
        Whether a pixel of the one must be of the other; else it must not be.
    text
        "water and building never share a pixel", "flooded forest implies water".
    """

    one: int
    other: int
    implied: bool
    text: str

    def find_contradictions(self, targets: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
        """Return where targets (T, ...) contradict the rule; not where a class is unlabelled."""
        wrong: NDArray[np.bool_] = targets[self.other] == (_ABSENT if self.implied else _PRESENT)
        return wrong & (targets[self.one] == _PRESENT)


def find_relations(
    names: Sequence[str], never: Sequence[Sequence[str]], implies: Mapping[str, Sequence[str]]
) -> tuple[Relation, ...]:
    """Return the rules of a task.

    Parameters
    ----------
    names
        Of the classes.
    never
        Lists of classes, no two of which share a pixel.
    implies
        {class: classes that each of its pixels is of, too}.

    Raises
    ------
    TaskError
        A rule names an unknown class or contradicts others.
    """
    for key, listed in [("never", one) for one in never] + [(f"implies.{one}", implies[one]) for one in implies]:
        _check_names(names, key, [key.partition(".")[2], *listed] if key != "never" else listed)
    for one in never:
        if len(one) < 2:
            raise TaskError(f"task.never lists {', '.join(one) or 'no class'} alone; list two classes or more")
    place = {name: position for position, name in enumerate(names)}
    excluded = {(a, b) for group in never for a in group for b in group if place[a] < place[b]}
    for name in implies:
        _check_implied(name, implies, excluded, place)
    return tuple(
        [Relation(place[a], place[b], False, f"{a} and {b} never share a pixel") for a, b in sorted(excluded)]
        + [Relation(place[a], place[b], True, f"{a} implies {b}") for a, others in implies.items() for b in others]
    )


def _check_names(names: Sequence[str], key: str, listed: Sequence[str]) -> None:
    for name in listed:
        if name not in names:
            raise TaskError(f"task.{key} names {name!r}, which is not a class of the task; use {', '.join(names)}")
        if listed.count(name) > 1:
            raise TaskError(f"task.{key} names {name!r} with itself; remove it")


def _check_implied(
    name: str, implies: Mapping[str, Sequence[str]], excluded: set[tuple[str, str]], place: Mapping[str, int]
) -> None:
    """Raise a TaskError if what a class implies, also through others, includes itself or two that never meet."""
    found: dict[str, None] = {}
    for other in _follow(name, implies):
        if other == name:
            raise TaskError(
                f"task.implies: {name!r} implies itself ({name}, {', '.join(found)}, {name}), so these classes are "
                "always together; keep one of them, or remove a rule"
            )
        found[other] = None
    together = sorted([name, *found], key=place.__getitem__)
    for position, one in enumerate(together):
        for other in together[position + 1 :]:
            if (one, other) in excluded:
                raise TaskError(
                    f"task.implies: a pixel of {name!r} is {one} and {other}, which task.never excludes; remove one of "
                    "the two rules"
                )


def _follow(name: str, implies: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield what a class implies, directly or through others; each once, and the class itself if it is reached."""
    seen: set[str] = set()
    waiting = list(implies.get(name, ()))
    while waiting:
        other = waiting.pop(0)
        if other not in seen:
            seen.add(other)
            yield other
            waiting += implies.get(other, ())


class CoOccurrence:
    """Counts how often overlapping classes share a pixel, and pixels that contradict the rules of their task.

    Attributes
    ----------
    both
        int64 (T, T): pixels of both classes; on the diagonal, those of one.
    known
        int64 (T, T): pixels of the class of the row where that of the column is labelled, too.
    contradictions
        int64 (R,): pixels that contradict each of `task.relations`.
    pixels, contradicting
        Pixels with a label, and those that contradict a rule.
    """

    def __init__(self, task: TaskDeclaration) -> None:
        self.task, size = task, task.n_targets
        self.both: NDArray[np.int64] = np.zeros((size, size), dtype=np.int64)
        self.known: NDArray[np.int64] = np.zeros((size, size), dtype=np.int64)
        self.contradictions: NDArray[np.int64] = np.zeros(len(task.relations), dtype=np.int64)
        self.pixels = self.contradicting = 0

    def add(self, targets: NDArray[np.integer[Any]]) -> None:
        """Count targets (T, ...), `IGNORE` where unlabelled."""
        flat = targets.reshape(len(targets), -1)
        present = (flat == _PRESENT).astype(np.float64)  # products of floats are much faster, and exact up to 2^53
        self.both += (present @ present.T).astype(np.int64)
        self.known += (present @ (flat >= _ABSENT).astype(np.float64).T).astype(np.int64)
        self.pixels += int((flat >= _ABSENT).any(axis=0).sum())
        wrong = [relation.find_contradictions(flat) for relation in self.task.relations]
        if wrong:
            self.contradictions += np.array([each.sum() for each in wrong])
            self.contradicting += int(np.logical_or.reduce(wrong).sum())

    def merge(self, other: CoOccurrence) -> None:
        """Add the counts of another instance with the same task."""
        for name in ("both", "known", "contradictions", "pixels", "contradicting"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def shares(self) -> NDArray[np.float64]:
        """Return the share of the pixels of each class (row) that are also of another (column); NaN without any."""
        with np.errstate(invalid="ignore"):
            return np.where(self.known > 0, self.both / self.known, np.nan)

    def table(self) -> dict[str, dict[str, float | None]]:
        """Return `shares` by class names, {class: {other class: share}}; None without any pixel."""
        names = [one.name for one in self.task.classes]
        return {
            name: {other: None if np.isnan(value) else float(value) for other, value in zip(names, row, strict=True)}
            for name, row in zip(names, self.shares(), strict=True)
        }

    def summary(self) -> dict[str, Any]:
        """Return the pixels that contradict the rules, as a JSON value."""
        return {
            "pixels": self.contradicting,
            "share": self.contradicting / self.pixels if self.pixels else None,
            "rules": {
                relation.text: int(count)
                for relation, count in zip(self.task.relations, self.contradictions, strict=True)
            },
        }
