"""Executor: runs the work items of scenes, one after the other in this process, or distributed over workers.

The job of a scene is a generator. It yields the work items of its next step, which are independent of each other,
receives their results, and returns a summary. It does not depend on where items run.
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
from segkit.inference.tasks import WorkerContext, WorkerInputs, WorkItem, run_on_worker
from segkit.runtime.progress import progress

SceneJob = Generator[Sequence[WorkItem], Sequence[Any], Summary]

# Scenes that are distributed at the same time; the client keeps a lock file open for each.
_MAX_RUNNING_SCENES = 500


class Executor(Protocol):
    """Workers that see the same files under the same paths."""

    @property
    def max_tasks(self) -> int:
        """Number of tasks that should run or wait at a time, so that all workers are busy."""

    @property
    def workers_per_host(self) -> int:
        """Maximum number of workers that share a machine."""

    def submit(self, task: Callable[[], Any]) -> Hashable:
        """Submit a task, which must be picklable, and return its id.

        Raises
        ------
        ClusterError
            The workers cannot be reached any more.
        """

    def next_result(self) -> tuple[Hashable, Any]:
        """Wait for any task to end, and return its id with its result or the exception that it raised.

        Raises
        ------
        ClusterError
            The workers cannot be reached any more.
        """


def submit_one(executor: Executor, inputs: WorkerInputs, item: WorkItem) -> Any:
    """Run a single item on an executor without other tasks; return its result, or raise its exception."""
    executor.submit(partial(run_on_worker, item, inputs, executor.workers_per_host))
    _, outcome = executor.next_result()
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def run_local(
    scenes: Iterable[SceneJob], context: WorkerContext, *, show_progress: bool
) -> Iterator[Summary | Exception]:
    """Run scenes one after the other in this process; yields the summary of each, or its exception."""
    for scene in scenes:
        try:
            yield _run_scene(scene, context, show_progress=show_progress)
        except Exception as error:  # noqa: BLE001 - handled by the caller
            yield error


def _run_scene(scene: SceneJob, context: WorkerContext, *, show_progress: bool) -> Summary:
    with closing(scene):
        try:
            items = next(scene)
            while True:
                try:
                    outcomes = []
                    pixels = sum(item.megapixels for item in items)
                    with progress(items[0].name, pixels, "Mpx", show=show_progress and pixels > 0) as advance:
                        for item in items:
                            outcomes.append(item(context, advance))  # noqa: PERF401 - clearer with `advance`
                except BaseException as error:  # noqa: BLE001 - handled by the job of the scene
                    items = scene.throw(error)
                else:
                    items = scene.send(outcomes)
        except StopIteration as end:
            summary: Summary = end.value
            return summary


def run_distributed(
    scenes: Sequence[SceneJob], executor: Executor, inputs: WorkerInputs, *, show_progress: bool
) -> list[Summary | Exception]:
    """Run scenes on an executor, several at a time; returns the summary of each, or its exception, in their order.

    Raises
    ------
    ClusterError
        The workers cannot be reached any more.
    """
    with ExitStack() as stack:
        for scene in scenes:
            stack.callback(scene.close)
        return _DistributedRun(scenes, executor, inputs, stack, show_progress=show_progress).run()


@dataclass
class _RunningScene:
    """A scene with the items of its current step."""

    index: int
    job: SceneJob
    items: Sequence[WorkItem] = ()
    outcomes: dict[int, Any] = field(default_factory=dict)
    megapixels: float = 0.0


class _DistributedRun:
    """Distributes the items of several scenes; `stack` closes the progress bars."""

    def __init__(
        self,
        scenes: Sequence[SceneJob],
        executor: Executor,
        inputs: WorkerInputs,
        stack: ExitStack,
        *,
        show_progress: bool,
    ) -> None:
        self._executor, self._inputs, self._stack, self._show_progress = executor, inputs, stack, show_progress
        self._n_scenes = len(scenes)
        self._not_started = (_RunningScene(index, job) for index, job in enumerate(scenes))
        self._started = 0
        self._waiting: deque[tuple[_RunningScene, int]] = deque()
        self._submitted: dict[Hashable, tuple[_RunningScene, int]] = {}
        self._ended: dict[int, Summary | Exception] = {}
        several = self._n_scenes > 1
        self._progress = stack.enter_context(
            progress(f"{self._n_scenes} scenes", self._n_scenes, "scenes", show=show_progress and several)
        )

    def run(self) -> list[Summary | Exception]:
        while True:
            self._submit()
            if not self._submitted:
                return [self._ended[index] for index in range(self._n_scenes)]
            self._receive()

    def _submit(self) -> None:
        """Submit items until the executor has enough, and start further scenes if none is waiting."""
        max_tasks = self._executor.max_tasks
        while len(self._submitted) < max_tasks:
            while not self._waiting and self._started - len(self._ended) < _MAX_RUNNING_SCENES:
                scene = next(self._not_started, None)
                if scene is None:
                    break
                self._started += 1
                self._next_step(scene)
            if not self._waiting:
                break
            scene, index = self._waiting.popleft()
            task = partial(run_on_worker, scene.items[index], self._inputs, self._executor.workers_per_host)
            self._submitted[self._executor.submit(task)] = scene, index

    def _receive(self) -> None:
        """Wait for a result, and start the next step of its scene if it was the last one of the step."""
        task_id, outcome = self._executor.next_result()
        scene, index = self._submitted.pop(task_id)
        scene.outcomes[index] = outcome
        if scene.megapixels:
            self._progress(scene.items[index].megapixels / (scene.megapixels if self._n_scenes > 1 else 1))
        if len(scene.outcomes) == len(scene.items):
            self._next_step(scene)

    def _next_step(self, scene: _RunningScene) -> None:
        outcomes = [scene.outcomes[index] for index in range(len(scene.items))]
        try:
            scene.items = scene.job.send(outcomes) if scene.items else next(scene.job)
        except StopIteration as end:
            self._ended[scene.index] = end.value
        except Exception as error:  # noqa: BLE001 - handled by the caller
            self._ended[scene.index] = error
        else:
            scene.outcomes, scene.megapixels = {}, sum(item.megapixels for item in scene.items)
            if scene.megapixels and self._n_scenes == 1:
                self._progress = self._stack.enter_context(
                    progress(scene.items[0].name, scene.megapixels, "Mpx", show=self._show_progress)
                )
            self._waiting.extend((scene, index) for index in range(len(scene.items)))


def results_or_raise(
    items: Sequence[WorkItem], outcomes: Sequence[Any], *, also: tuple[type[Exception], ...] = ()
) -> list[Any]:
    """Return the results of work items if all succeeded.

    Raises
    ------
    ClusterError
        Some of several items failed; the message lists them.
    Exception
        The error of the only item, or any error of a type in `also`.
    """
    failed = [(item, error) for item, error in zip(items, outcomes, strict=True) if isinstance(error, Exception)]
    for _, error in failed:
        if len(items) == 1 or isinstance(error, also):
            raise error
    if failed:
        details = "".join(f"\n  {item.description}: {error_message(error)}" for item, error in failed)
        raise ClusterError(
            f"{items[0].name}: {len(failed)} of {len(items)} work items failed, the others are kept; the same command "
            f"runs only these again:{details}"
        )
    return list(outcomes)


def error_message(error: Exception) -> str:
    """Return the text of an error for users."""
    return str(error) if isinstance(error, SegkitError) else f"unexpected {type(error).__name__}: {error}"
