"""Prediction on a Dask cluster, of several machines or local processes.

Only this module uses Dask. Workers receive work items (`segkit.inference.tasks`) of a few kilobytes and return less;
they read and write files that all of them see.
"""

from __future__ import annotations

import logging
import operator
import os
import queue
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4

import torch

from segkit.errors import ClusterError, SegkitError, UsageError
from segkit.inference.device import set_default_threads

if TYPE_CHECKING:
    from distributed import Client, Future, WorkerPlugin

_LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
_RESUME_ADVICE = "finished work is kept; the same command resumes, with or without --cluster"
_SCHEDULER_LOST = f"the connection to the scheduler of the cluster is lost; {_RESUME_ADVICE}"
_POLL_INTERVAL_S = 5.0  # between queries of the list of workers
# Run by every process of `local:N`: they ignore Ctrl-C, and the client ends them.
_IGNORE_SIGINT = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
# Set before they start. Threads of several networks share the cores, so waiting threads must not occupy one. Work items
# run in a thread, which needs the heap of the main thread to reuse its memory (`segkit.runtime.memory`).
_LOCAL_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "MALLOC_ARENA_MAX": "1"}
_SET_BY_DASK = ("PYTHONHASHSEED", "__DASK_PARENT_PID")  # by its nanny in this process


@contextmanager
def connect(address: Any, *, insecure: bool = False, patience: float = 60.0) -> Iterator[DaskExecutor]:
    """Connect to a cluster, and yield an executor for `segkit.predict`; local workers run only during the block.

    Parameters
    ----------
    address
        "local:4" for four processes on this machine, the address of a scheduler (tls://host:8786), or a cluster object
        of dask-jobqueue, dask-kubernetes and others. Certificates are read from Dask's configuration.
    insecure
        Whether to allow tcp:// to other machines. Anyone who reaches that port can run any code as you, on all workers.
    patience
        Seconds to wait for the scheduler, for the first worker, and for new workers if all are gone.

    Raises
    ------
    UsageError
        The address is not valid or not allowed, or Dask is not installed.
    ClusterError
        The scheduler does not answer, or no worker starts.
    """
    workers = _parse_address(address, insecure=insecure) if isinstance(address, str) else None
    try:
        import dask
        import distributed
    except ImportError:
        raise UsageError(
            'a cluster needs Dask, which is not installed: pip install "landcover-segkit[cluster]"'
        ) from None

    with ExitStack() as stack:
        # Errors report what happens to workers and connections; Dask would also log it at length.
        for name in ("distributed", "tornado.application"):
            stack.enter_context(_silence(logging.getLogger(name)))
        quiet = {"distributed.logging.distributed": "critical", "distributed.client.scheduler-info-interval": "1h"}
        stack.enter_context(dask.config.set(quiet))
        threads = refill = None
        if workers:
            threads = torch.get_num_threads()
            environment = {**_LOCAL_ENVIRONMENT, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
            stack.enter_context(_environment_variables(environment))
            stack.enter_context(dask.config.set({"distributed.nanny.pre-spawn-environ": environment}))
            cluster = address = stack.enter_context(
                distributed.LocalCluster(  # type: ignore[no-untyped-call]
                    n_workers=workers,
                    threads_per_worker=1,
                    host="127.0.0.1",
                    scheduler_port=0,
                    dashboard_address="127.0.0.1:0",  # for health and metrics only; ...
                    scheduler_kwargs={"dashboard": False},  # ... there is no dashboard
                    memory_limit=0,  # none; windows are sized to fit into free memory
                    silence_logs=logging.CRITICAL,
                    preload=_IGNORE_SIGINT,
                )
            )
            refill = partial(cluster.scale, workers)
        try:
            client = stack.enter_context(
                distributed.Client(  # type: ignore[no-untyped-call]
                    address, timeout=patience, set_as_default=False, heartbeat_interval="60s"
                )
            )
        except (OSError, TypeError, ValueError, RuntimeError) as error:
            raise ClusterError(
                f"{address}: no scheduler answers there ({error}); check that it is running, that its version of Dask "
                "is the same, and, for tls://, the certificates in Dask's configuration"
            ) from error
        client.register_plugin(_slow_heartbeat())
        executor = DaskExecutor(client, threads=threads, patience=patience, refill=refill)
        executor.wait()
        try:
            yield executor
        finally:
            executor.cancel()


class DaskExecutor:
    """The workers of a Dask client, as an `Executor`; made by `connect`.

    Parameters
    ----------
    threads
        Threads of each worker's network on a CPU; None for one per core.
    refill
        Called regularly: replaces workers that Dask has given up.
    """

    def __init__(
        self, client: Client, *, threads: int | None, patience: float, refill: Callable[[], object] | None = None
    ) -> None:
        self._client, self._threads, self._patience, self._refill = client, threads, patience, refill
        self._address = getattr(client.scheduler, "address", "ADDRESS")
        self._unsent: dict[str, Callable[[], Any]] = {}
        self._under_way: dict[str, Future[Any]] = {}
        self._ended: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._hosts: Counter[str] = Counter()
        # Times of the last query of workers, and of the last one that found any.
        self._queried, self._found = -float("inf"), time.monotonic()

    @property
    def max_tasks(self) -> int:
        """One task per worker: the next one arrives within milliseconds, and no waiting task is lost with a worker."""
        self._update_workers()
        return max(1, self._hosts.total())

    @property
    def workers_per_host(self) -> int:
        """Maximum number of workers on a machine."""
        return max(self._hosts.values(), default=1)

    def wait(self) -> None:
        """Wait for the first worker."""
        while True:
            self._update_workers(force=True)
            if self._hosts:
                return
            time.sleep(0.1)

    def submit(self, task: Callable[[], Any]) -> str:
        """Submit a task to any worker; it is sent with all others before the next call of `next_result`."""
        key = f"segkit-{uuid4().hex}"
        self._unsent[key] = task
        return key

    def next_result(self) -> tuple[str, Any]:
        """Wait for any task to end."""
        self._send()
        while True:
            try:
                key, outcome = self._ended.get(timeout=_POLL_INTERVAL_S)
            except queue.Empty:
                self._update_workers()
                continue
            if outcome is _SCHEDULER_LOST:
                raise ClusterError(_SCHEDULER_LOST)
            del self._under_way[key]
            return key, outcome

    def cancel(self) -> None:
        """Cancel all tasks; workers finish the ones that they run, and the results are dropped."""
        with suppress(Exception):  # without a scheduler there is nothing to cancel
            self._client.cancel(list(self._under_way.values()), force=True)  # type: ignore[no-untyped-call]
        self._under_way.clear()

    def _send(self) -> None:
        """Send the submitted tasks, pickled to bytes: the scheduler need not have segkit."""
        from distributed.protocol.pickle import dumps, loads
        from toolz import compose

        if not self._unsent:
            return
        pickled = [
            dumps(partial(_run_task, task, self._threads))  # type: ignore[no-untyped-call]
            for task in self._unsent.values()
        ]
        futures = self._client.map(compose(operator.call, loads), pickled, key=list(self._unsent))
        for key, future in zip(self._unsent, futures, strict=True):
            self._under_way[key] = future
            self._client.loop.add_callback(self._follow, key, future)  # type: ignore[union-attr]
        self._unsent.clear()

    async def _follow(self, key: str, future: Future[Any]) -> None:
        """Wait for the result of a task in the client's thread, which fetches results in batches."""
        from distributed import CancelledError, KilledWorker
        from distributed.comm.core import CommClosedError

        outcome: Any
        try:
            outcome = await future
        except KilledWorker as error:
            outcome = ClusterError(f"{error.allowed_failures + 1} workers died while running it, one after the other")
        except (CancelledError, CommClosedError):
            outcome = _SCHEDULER_LOST
        except Exception as error:  # noqa: BLE001 - raised by the task
            outcome = error
        self._ended.put((key, outcome))

    def _update_workers(self, *, force: bool = False) -> None:
        """Query the list of workers, every few seconds."""
        now = time.monotonic()
        if now - self._queried < _POLL_INTERVAL_S and not force:
            return
        try:
            workers: Mapping[str, int] = self._client.nthreads()  # type: ignore[no-untyped-call]
        except (OSError, ValueError, RuntimeError, TimeoutError):
            raise ClusterError(_SCHEDULER_LOST) from None
        self._queried = now
        if self._refill:
            self._refill()
        self._hosts = Counter(urlsplit(worker).hostname or "" for worker in workers)
        if self._hosts:
            self._found = now
        elif now - self._found > self._patience:
            raise ClusterError(
                f"the cluster has had no worker for {self._patience:.0f} s; start some (dask worker "
                f"{self._address}); {_RESUME_ADVICE}"
            )


def _slow_heartbeat() -> WorkerPlugin:
    """Return a plugin that makes workers send a heartbeat every five seconds; by default Dask has two a second.

    Heartbeats are most of the bytes that pass the scheduler. It notices dead workers by their connections.
    """
    from distributed import Worker, WorkerPlugin

    class SlowHeartbeat(WorkerPlugin):  # pickled by value, so that neither scheduler nor worker has to import torch
        name = "segkit-slow-heartbeat"

        def setup(self, worker: Worker) -> None:
            heartbeat = worker.periodic_callbacks["heartbeat"]

            async def slow() -> None:
                await worker.heartbeat()  # sets the time to the next one
                heartbeat.callback_time = max(heartbeat.callback_time, 5000)

            heartbeat.callback = slow

    return SlowHeartbeat()


def _run_task(task: Callable[[], Any], threads: int | None) -> Any:
    """Run a task on a worker with this number of threads."""
    from dask.system import CPU_COUNT

    torch.set_num_threads(threads or CPU_COUNT)  # Dask's own default is one
    set_default_threads(threads or CPU_COUNT)
    try:
        return task()
    except SegkitError as error:
        picklable = type(error)(f"{error} (on worker {socket.gethostname()})")
    raise picklable  # without its cause: errors of rasterio cannot be pickled


def _parse_address(address: str, *, insecure: bool) -> int | None:
    """Return the number of local workers; None for the address of a scheduler.

    Raises
    ------
    UsageError
        The address is not valid, or is not allowed.
    """
    if address.startswith("local"):
        found = re.fullmatch(r"local:([1-9]\d*)", address)
        if not found:
            raise UsageError(f"cluster {address!r} is not known; local:4 starts four workers on this machine")
        return int(found[1])
    try:
        parts = urlsplit(address)
        known = parts.scheme in ("tls", "tcp") and parts.hostname and parts.port
    except ValueError:
        known = False
    if not known:
        raise UsageError(f"cluster {address!r} is not known; name local:N, or a scheduler as tls://host:8786")
    if parts.scheme == "tcp" and parts.hostname not in _LOOPBACK_HOSTS and not insecure:
        raise UsageError(
            f"{address} is not encrypted, and not on this machine: anyone who reaches it can run any code on its "
            "workers, as you; use tls://, an ssh tunnel to tcp://127.0.0.1, or --insecure on a trusted network"
        )
    return None


@contextmanager
def _environment_variables(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for processes that start during the block; Dask would leave them and its own set."""
    before = {name: os.environ.get(name) for name in (*variables, *_SET_BY_DASK)}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _silence(logger: logging.Logger) -> Iterator[None]:
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
