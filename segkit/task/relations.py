"""What a task says about overlapping classes: which never share a pixel, and which imply others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segkit.errors import TaskError

ABSENT, PRESENT = 0, 1  # categories of overlapping classes


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
        contradicts = ABSENT if self.implied else PRESENT
        wrong: NDArray[np.bool_] = (targets[self.one] == PRESENT) & (targets[self.other] == contradicts)
        return wrong


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
