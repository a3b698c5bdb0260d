"""Cluster: predictions on more than one machine, or process, by Dask.

Only this file knows Dask. Workers get units of work (`segkit.inference.tasks`) of a few kilobytes and return less; what
they read and write lies in files that all of them see.
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

if TYPE_CHECKING:
    from distributed import Client, Future, WorkerPlugin

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_AGAIN = "what is finished is kept, and the same command goes on, with or without --cluster"
_LOST = f"the scheduler of the cluster is lost; {_AGAIN}"
_LOOK = 5.0  # seconds between two looks at which workers are there
# Run by every process of `local:N`: Ctrl-C is for the client, who ends them.
_DEAF = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
# Set before they start. Threads of several networks share the cores: those that wait for others must not hold them. And
# units are worked in a thread, which is to have the heap that `segkit.runtime.memory` keeps.
_LOCAL = {"OMP_WAIT_POLICY": "PASSIVE", "MALLOC_ARENA_MAX": "1"}


@contextmanager
def connect(address: Any, *, insecure: bool = False, patience: float = 60.0) -> Iterator[DaskCrew]:
    """Give the workers of a cluster to `segkit.predict` while the block lasts; local ones start and end with it.

    Parameters
    ----------
    address
        "local:4" for so many processes on this machine, the address of a scheduler (tls://host:8786), or a cluster
        object of dask-jobqueue, dask-kubernetes and the like. Certificates come from Dask's own configuration.
    insecure
        Whether tcp:// is allowed to other machines: whoever reaches its port can run anything as you, on all workers.
    patience
        Seconds to wait for the scheduler, and for the first worker, or for a new one where all are gone.

    Raises
    ------
    UsageError
        The address is no such, is not allowed, or Dask is not installed.
    ClusterError
        Nobody answers there, or no worker comes.
    """
    workers = _workers(address, insecure=insecure) if isinstance(address, str) else None
    try:
        import dask
        import distributed
    except ImportError:
        raise UsageError('a cluster needs Dask, which is not installed: pip install "segkit[cluster]"') from None

    with ExitStack() as stack:
        # What happens to workers and connections is told by errors; Dask would fill the screen with it.
        for name in ("distributed", "tornado.application"):
            stack.enter_context(_quiet(logging.getLogger(name)))
        quiet = {"distributed.logging.distributed": "critical", "distributed.client.scheduler-info-interval": "1h"}
        stack.enter_context(dask.config.set(quiet))
        threads = refill = None
        if workers:
            threads = torch.get_num_threads()
            environment = {**_LOCAL, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
            stack.enter_context(_environment(environment))
            stack.enter_context(dask.config.set({"distributed.nanny.pre-spawn-environ": environment}))
            cluster = address = stack.enter_context(
                distributed.LocalCluster(  # type: ignore[no-untyped-call]
                    n_workers=workers,
                    threads_per_worker=1,
                    host="127.0.0.1",
                    scheduler_port=0,
                    dashboard_address="127.0.0.1:0",  # of its health and numbers alone: ...
                    scheduler_kwargs={"dashboard": False},  # ... there is no dashboard
                    memory_limit=0,  # the system's; windows are made to fit into what is free
                    silence_logs=logging.CRITICAL,
                    preload=_DEAF,
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
                f"{address}: no scheduler answers there ({error}); is it running, do its and your versions of Dask "
                "agree, and for tls:// are certificates in Dask's configuration?"
            ) from error
        client.register_plugin(_seldom_heard())
        crew = DaskCrew(client, threads=threads, patience=patience, refill=refill)
        crew.wait()
        try:
            yield crew
        finally:
            crew.cancel()


class DaskCrew:
    """The workers that a client of Dask reaches, as `segkit.predict` sees them; made by `connect`.

    Parameters
    ----------
    threads
        That each worker's network takes on a CPU; None for as many as it has cores.
    refill
        Called now and then: starts workers in the place of those that Dask has given up.
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
        self._looked, self._seen = -float("inf"), time.monotonic()  # when workers were looked for, and last there

    @property
    def room(self) -> int:
        """One task for each worker: the next one is there within milliseconds, and none dies in a queue."""
        self._look()
        return max(1, self._hosts.total())

    @property
    def sharing(self) -> int:
        """Workers on one machine, at most."""
        return max(self._hosts.values(), default=1)

    def wait(self) -> None:
        """Wait for the first worker."""
        while True:
            self._look(force=True)
            if self._hosts:
                return
            time.sleep(0.1)

    def start(self, task: Callable[[], Any]) -> str:
        """Start a task on any worker; it is sent with all others that were started before `next` is called."""
        key = f"segkit-{uuid4().hex}"
        self._unsent[key] = task
        return key

    def next(self) -> tuple[str, Any]:
        """Wait for any task that ends."""
        self._send()
        while True:
            try:
                key, outcome = self._ended.get(timeout=_LOOK)
            except queue.Empty:
                self._look()
                continue
            if outcome is _LOST:
                raise ClusterError(_LOST)
            del self._under_way[key]
            return key, outcome

    def cancel(self) -> None:
        """Forget what is under way; what a worker has begun, it ends, and nobody asks for it."""
        with suppress(Exception):  # where the scheduler is lost there is nothing to cancel
            self._client.cancel(list(self._under_way.values()), force=True)  # type: ignore[no-untyped-call]
        self._under_way.clear()

    def _send(self) -> None:
        """Send the tasks that were started. To the scheduler they are bytes: it need not know segkit."""
        from distributed.protocol.pickle import dumps, loads
        from toolz import compose

        if not self._unsent:
            return
        pickled = [
            dumps(partial(_on_worker, task, self._threads))  # type: ignore[no-untyped-call]
            for task in self._unsent.values()
        ]
        futures = self._client.map(compose(operator.call, loads), pickled, key=list(self._unsent))
        for key, future in zip(self._unsent, futures, strict=True):
            self._under_way[key] = future
            self._client.loop.add_callback(self._follow, key, future)  # type: ignore[union-attr]
        self._unsent.clear()

    async def _follow(self, key: str, future: Future[Any]) -> None:
        """Fetch what a task comes to, in the client's thread, where those that end together are fetched together."""
        from distributed import CancelledError, KilledWorker
        from distributed.comm.core import CommClosedError

        outcome: Any
        try:
            outcome = await future
        except KilledWorker as error:
            outcome = ClusterError(f"{error.allowed_failures + 1} workers died of it, one after the other")
        except (CancelledError, CommClosedError):
            outcome = _LOST
        except Exception as error:  # noqa: BLE001 - the task's
            outcome = error
        self._ended.put((key, outcome))

    def _look(self, *, force: bool = False) -> None:
        """See which workers are there, now and then."""
        now = time.monotonic()
        if now - self._looked < _LOOK and not force:
            return
        try:
            workers: Mapping[str, int] = self._client.nthreads()  # type: ignore[no-untyped-call]
        except (OSError, ValueError, RuntimeError, TimeoutError):
            raise ClusterError(_LOST) from None
        self._looked = now
        if self._refill:
            self._refill()
        self._hosts = Counter(urlsplit(worker).hostname or "" for worker in workers)
        if self._hosts:
            self._seen = now
        elif now - self._seen > self._patience:
            raise ClusterError(
                f"the cluster has had no worker for {self._patience:.0f} s; start some (dask worker "
                f"{self._address}); {_AGAIN}"
            )


def _seldom_heard() -> WorkerPlugin:
    """Return what makes workers give a sign of life every five seconds; of few workers, Dask wants ten in that time.

    It is what most of the bytes are that pass the scheduler. Whether a worker has died, its connection tells.
    """
    from distributed import Worker, WorkerPlugin

    class SeldomHeard(WorkerPlugin):  # sent as it is written here: neither scheduler nor worker has to import torch
        name = "segkit-seldom-heard"

        def setup(self, worker: Worker) -> None:
            beat = worker.periodic_callbacks["heartbeat"]

            async def seldom() -> None:
                await worker.heartbeat()  # which sets the time to the next one
                beat.callback_time = max(beat.callback_time, 5000)

            beat.callback = seldom

    return SeldomHeard()


def _on_worker(task: Callable[[], Any], threads: int | None) -> Any:
    """Work a task with the threads that this worker is to take."""
    from dask.system import CPU_COUNT

    torch.set_num_threads(threads or CPU_COUNT)  # Dask's own default is one
    try:
        return task()
    except SegkitError as error:
        told = type(error)(f"{error} (told by the worker on {socket.gethostname()})")
    raise told  # here, without what it came from: rasterio's errors cannot be sent


def _workers(address: str, *, insecure: bool) -> int | None:
    """Return how many workers to start here; None where the address is a scheduler's that may be used.

    Raises
    ------
    UsageError
        It is none.
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
    if parts.scheme == "tcp" and parts.hostname not in _LOOPBACK and not insecure:
        raise UsageError(
            f"{address} is neither encrypted nor of this machine: whoever reaches it can run anything on its workers, "
            "as you; use tls://, an ssh tunnel to tcp://127.0.0.1, or --insecure on a network where you trust everybody"
        )
    return None


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the processes that are started while the block lasts; Dask itself would leave them set."""
    before = {name: os.environ.get(name) for name in variables}
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
def _quiet(logger: logging.Logger) -> Iterator[None]:
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
