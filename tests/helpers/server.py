"""A local HTTP server for rasters: serves ranges, counts what it is asked for, and fails as asked.

`/bucket/...` may be asked as S3 does: signatures are taken as they come.
"""

from __future__ import annotations

import hashlib
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Served:
    """What is served, what was asked for, and what goes wrong.

    `fail(path, range_or_None)` returns None, or what to do instead: a status, or "reset", "short", "stall".
    """

    folder: Path
    ranges: bool = True
    etags: bool = True
    fail: Callable[[str, tuple[int, int] | None], int | str | None] = lambda path, range_: None
    asked: list[tuple[str, str, tuple[int, int] | None]] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)
    headers: list[dict[str, str]] = field(default_factory=list)
    port: int = 0
    stalled: float = 30.0

    def url(self, name: str) -> str:
        """Return the address of a file of the folder."""
        return f"http://127.0.0.1:{self.port}/{name}"

    def requests(self, name: str | None = None) -> int:
        """Return how many requests there were, of one file or of all."""
        return sum(name is None or path == name for _, path, _ in self.asked)

    def forget(self) -> None:
        """Count from zero."""
        self.asked.clear()
        self.sent.clear()
        self.headers.clear()

    def failing(self, times: int, how: int | str) -> None:
        """Fail this many times, then serve."""
        left = [times]

        def fail(path: str, range_: tuple[int, int] | None) -> int | str | None:
            left[0] -= 1
            return how if left[0] >= 0 else None

        self.fail = fail


@contextmanager
def serving(folder: Path) -> Iterator[Served]:
    """Serve a folder on a free port of this machine while the block lasts."""
    served = Served(folder)
    stop = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            name = unquote(urlsplit(self.path).path).lstrip("/")
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            wanted = (int(found[1]), int(found[2])) if found else None
            served.asked.append((self.command, name, wanted))
            served.headers.append(dict(self.headers) | {"path": self.path})
            how = served.fail(name, wanted)
            if how == "reset":
                # Closing with unread data, and at once, resets the connection.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                self.close_connection = True
                return
            file = served.folder / name
            if isinstance(how, int) or not file.is_file():
                reply = f"<Error><Code>{how or 404}</Code></Error>".encode()
                self.send_response(how if isinstance(how, int) else 404)
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                if body:
                    self.wfile.write(reply)
                return
            facts = file.stat()
            size, start, stop_ = facts.st_size, 0, facts.st_size
            if wanted and served.ranges:
                start, stop_ = wanted[0], min(wanted[1] + 1, size)
                if start >= size:
                    self.send_response(416)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{stop_ - 1}/{size}")
            else:
                self.send_response(200)
            if served.ranges:
                self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(stop_ - start))
            if served.etags:
                mark = hashlib.md5(f"{facts.st_mtime_ns} {size}".encode()).hexdigest()
                self.send_header("ETag", f'"{mark}"')
                self.send_header("Last-Modified", self.date_time_string(int(facts.st_mtime)))
            self.end_headers()
            if not body:
                return
            with file.open("rb") as stream:
                stream.seek(start)
                data = stream.read(stop_ - start)
            if how in ("short", "stall"):
                data = data[: len(data) // 2]
                self.close_connection = True
            with suppress(OSError):
                self.wfile.write(data)
                served.sent[name] += len(data)
            if how == "stall":
                stop.wait(served.stalled)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *_: Any) -> None:
            """A client that hangs up is no error."""

    with Server(("127.0.0.1", 0), Handler) as server:
        served.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield served
        finally:
            stop.set()
            server.shutdown()
            thread.join()


def _serve_forever() -> None:
    import sys

    with serving(Path(sys.argv[1])) as served:
        print(served.port, flush=True)
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    _serve_forever()
