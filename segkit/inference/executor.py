"""Crew: scenes take steps, of units each, and here these are worked: one after the other, or elsewhere all at once.

A scene is a generator. It yields the units of its next step, all of which may be worked at the same time, is sent what
came of each, and returns its summary. Where units are worked, it does not know.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from segkit.errors import ClusterError, SegkitError
from segkit.inference.summary import Summary
from segkit.inference.tasks import Source, Tools, Unit, elsewhere
from segkit.runtime.progress import progress

Steps = Generator[Sequence[Unit], Sequence[Any], Summary]

# Scenes that a crew has under way at most: the client keeps a file open for the lock of each.
_SCENES_AT_ONCE = 500


class Crew(Protocol):
    """Workers elsewhere, who see the same files under the same paths."""

    @property
    def room(self) -> int:
        """Tasks that may be under way, so that no worker waits and none is swamped."""

    @property
    def sharing(self) -> int:
        """Workers that share one machine, at most."""

    def start(self, task: Callable[[], Any]) -> Hashable:
        """Start a task, which is pickled for it; returns its ticket.

        Raises
        ------
        ClusterError
            The crew is lost.
        """

    def next(self) -> tuple[Hashable, Any]:
        """Wait for any task that ends: its ticket, and what it returned or the exception that it raised.

        Raises
        ------
        ClusterError
            The crew is lost.
        """


def ask(crew: Crew, source: Source, unit: Unit) -> Any:
    """Let a crew that has nothing else to do work one unit; returns or raises what it does."""
    crew.start(partial(elsewhere, unit, source, crew.sharing))
    _, outcome = crew.next()
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def work_here(scenes: Iterable[Steps], tools: Tools, *, show_progress: bool) -> Iterator[Summary | Exception]:
    """Work scenes one after the other; yields the summary of each, or why there is none."""
    for scene in scenes:
        try:
            yield _work_one(scene, tools, show_progress=show_progress)
        except Exception as error:  # noqa: BLE001 - whoever asked decides
            yield error


def _work_one(scene: Steps, tools: Tools, *, show_progress: bool) -> Summary:
    with closing(scene):
        try:
            units = next(scene)
            while True:
                try:
                    outcomes = []
                    pixels = sum(unit.megapixels for unit in units)
                    with progress(units[0].name, pixels, "Mpx", show=show_progress and pixels > 0) as advance:
                        for unit in units:
                            outcomes.append(unit(tools, advance))  # noqa: PERF401 - an error is of one unit
                except BaseException as error:  # noqa: BLE001 - the scene decides what follows of it
                    units = scene.throw(error)
                else:
                    units = scene.send(outcomes)
        except StopIteration as end:
            summary: Summary = end.value
            return summary


@dataclass
class _Scene:
    """A scene under way: its place among all, and the units of its step that are out."""

    place: int
    steps: Steps
    units: Sequence[Unit] = ()
    outcomes: dict[int, Any] = field(default_factory=dict)
    pixels: float = 0.0


def work_elsewhere(
    scenes: Sequence[Steps], crew: Crew, source: Source, *, show_progress: bool
) -> list[Summary | Exception]:
    """Let a crew work scenes side by side; returns the summary of each, or why there is none, in their order.

    Raises
    ------
    ClusterError
        The crew is lost.
    """
    ended: dict[int, Summary | Exception] = {}
    coming = (_Scene(place, steps) for place, steps in enumerate(scenes))
    waiting: deque[tuple[_Scene, int]] = deque()  # units that nobody has begun
    flying: dict[Hashable, tuple[_Scene, int]] = {}
    begun = 0
    with ExitStack() as stack:
        for steps in scenes:
            stack.callback(steps.close)
        many = len(scenes) > 1
        advance = stack.enter_context(
            progress(f"{len(scenes)} scenes", len(scenes), "scenes", show=show_progress and many)
        )

        def go_on(scene: _Scene) -> None:
            """Take the next step of a scene."""
            nonlocal advance
            outcomes = [scene.outcomes[index] for index in range(len(scene.units))]
            try:
                scene.units = scene.steps.send(outcomes) if scene.units else next(scene.steps)
            except StopIteration as end:
                ended[scene.place] = end.value
            except Exception as error:  # noqa: BLE001 - whoever asked decides
                ended[scene.place] = error
            else:
                scene.outcomes, scene.pixels = {}, sum(unit.megapixels for unit in scene.units)
                if scene.pixels and not many:
                    advance = stack.enter_context(
                        progress(scene.units[0].name, scene.pixels, "Mpx", show=show_progress)
                    )
                waiting.extend((scene, index) for index in range(len(scene.units)))

        while True:
            room = crew.room
            while len(flying) < room:
                while not waiting and begun - len(ended) < _SCENES_AT_ONCE:
                    following = next(coming, None)
                    if following is None:
                        break
                    begun += 1
                    go_on(following)
                if not waiting:
                    break
                scene, index = waiting.popleft()
                ticket = crew.start(partial(elsewhere, scene.units[index], source, crew.sharing))
                flying[ticket] = scene, index
            if not flying:
                return [ended[place] for place in range(len(scenes))]
            ticket, outcome = crew.next()
            scene, index = flying.pop(ticket)
            scene.outcomes[index] = outcome
            if scene.pixels:
                advance(scene.units[index].megapixels / (scene.pixels if many else 1))
            if len(scene.outcomes) == len(scene.units):
                go_on(scene)


def settled(units: Sequence[Unit], outcomes: Sequence[Any], *, also: tuple[type[Exception], ...] = ()) -> list[Any]:
    """Return what units gave; where some failed, tell which, with all that they said.

    Raises
    ------
    ClusterError
        Some of several units failed.
    Exception
        The only unit failed, or one failed with an exception of `also`.
    """
    failed = [(unit, error) for unit, error in zip(units, outcomes, strict=True) if isinstance(error, Exception)]
    for _, error in failed:
        if len(units) == 1 or isinstance(error, also):
            raise error
    if failed:
        told = "".join(f"\n  {unit.told}: {said(error)}" for unit, error in failed)
        raise ClusterError(
            f"{units[0].name}: {len(failed)} of {len(units)} units of work were set aside, the others are kept; the "
            f"same command goes on with these:{told}"
        )
    return list(outcomes)


def said(error: Exception) -> str:
    """Return what an error tells a user."""
    return str(error) if isinstance(error, SegkitError) else f"unexpected {type(error).__name__}: {error}"
