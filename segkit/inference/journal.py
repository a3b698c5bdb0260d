"""Journal: the finished bands of a map, stored next to it until the map is complete.

::

    map.tif.bands/
        request.json                   the request, and the plan (resolved settings) made for it
        band-00003/                    a finished band: its files ...
            record.json                ... and their checksums
        .band-00004.1f2e3d4c.part/     a band that is being written, or the leftover of a killed process

A band appears and disappears by a single rename, so it is either complete or not there, even if a process is killed.
Its record has a key of request and plan, so a band that a late worker finishes for another request is not used.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segkit.errors import OutputError, OutputExistsError, SegkitError, suggest
from segkit.io.files import (
    atomic_write,
    describe_error,
    fsync,
    lock_folder,
    remove_atomically,
    remove_leftovers,
    temporary_folder,
)

_REQUEST = "request.json"
_RECORD = "record.json"
_BAND = re.compile(r"band-\d{5,}")
# Names that may be in a journal: its own, and files that network file systems and file managers create.
_KNOWN_NAMES = re.compile(rf"{_BAND.pattern}|request\.json|\.lock|\..+\.part|\.nfs.*|\.DS_Store")
_MAX_VALUE_CHARS = 40  # in a message


@dataclass
class JournalEntry:
    """A band that is being written: the folder of its files, and further data as a JSON value."""

    folder: Path
    data: dict[str, Any] = field(default_factory=dict)


class Journal:
    """The finished bands of a target; made by `Journal.open`.

    A pickled copy writes and finds bands of the same request and plan, on any machine that sees the folder under the
    same path. Copies do not hold the lock.
    """

    def __init__(self, target: Path, request: Mapping[str, Any]) -> None:
        self._target = target
        self._folder = target.with_name(f"{target.name}.bands").absolute()
        self._request = _to_json_value(request)
        self._plan: dict[str, Any] | None = None
        self._found: dict[int, dict[str, Any]] = {}

    @classmethod
    @contextmanager
    def open(cls, target: Path, request: Mapping[str, Any], *, overwrite: bool) -> Iterator[Journal]:
        """Open the journal of a request, or start one; it is locked during the block.

        The folder is removed at the end if no band is finished.

        Parameters
        ----------
        target
            The map; the journal is the folder `<target>.bands` next to it.
        request
            Everything that affects the result, as a JSON value; its keys appear in messages.
        overwrite
            Whether to remove finished bands of another request.

        Raises
        ------
        OutputExistsError
            There are finished bands of another request and `overwrite` is false, or other files in the folder.
        OutputError
            Another process has opened it, or the folder cannot be written.
        """
        journal = cls(target, request)
        folder = journal._folder
        with ExitStack() as stack:
            with journal._as_output_error():
                journal._make_folder()
                # Network file systems keep a removed folder while it is locked: remove leftovers after unlocking.
                stack.callback(remove_leftovers, folder.parent, folder.name)
                try:
                    stack.enter_context(lock_folder(folder))
                except (BlockingIOError, FileNotFoundError):
                    raise OutputError(
                        f"{target}: another segkit predict is writing it; let it finish, or name another output"
                    ) from None
                stack.callback(journal._remove_if_empty)
                remove_leftovers(folder)
                journal._continue_or_start(overwrite=overwrite)
            yield journal

    @classmethod
    def clear(cls, target: Path) -> None:
        """Remove what a killed process left of the journal of a finished target."""
        remove_leftovers(target.parent, f"{target.name}.bands")
        folder = target.with_name(f"{target.name}.bands")
        with suppress(BlockingIOError, FileNotFoundError), lock_folder(folder):  # in use, or it does not exist
            cls(target, {}).remove()

    @property
    def plan(self) -> dict[str, Any] | None:
        """The plan of the request; None before `record_plan`."""
        return self._plan

    def record_plan(self, plan: Mapping[str, Any]) -> None:
        """Store the plan of the request, a JSON value; bands that were finished with another plan are removed."""
        if _canonical_json(plan) != _canonical_json(self._plan):
            with self._as_output_error():
                self._start(plan)

    def refuse_gaps(self, *, overwrite: bool) -> None:
        """Remove all bands of the request, of which some have no data where the scene could not be read.

        Raises
        ------
        OutputExistsError
            `overwrite` is false.
        """
        if not overwrite:
            raise OutputExistsError(
                f"{self._target}: {len(self._bands())} finished band(s) are in {self._folder}, but unreadable "
                "blocks are no data in them"
                + suggest("add --on-read-error nodata to continue", "add --overwrite to start afresh")
            )
        with self._as_output_error():
            self._start(self._plan)

    def load_band(self, band: int) -> dict[str, Any] | None:
        """Return the data of a finished band; None if it has to be computed.

        Checksums of its files are verified, once per Journal. A damaged band is removed.

        Warns
        -----
        UserWarning
            The band was damaged.
        """
        if band not in self._found:
            folder = self._path(band)
            if not folder.exists():
                return None
            try:
                record = _read_checked(folder / _RECORD, "key", "files", "data")
                if record["key"] != self._key:
                    raise ValueError("it belongs to another request or plan")
                for name, expected in record["files"].items():
                    if _file_checksum(folder / name) != expected:
                        raise ValueError(f"{name} has changed")
            except (OSError, ValueError) as error:
                warnings.warn(f"{self._target}: band {band} is damaged and is computed again: {error}", stacklevel=2)
                with self._as_output_error():
                    remove_atomically(folder)
                return None
            self._found[band] = record["data"]
        return self._found[band]

    @contextmanager
    def write_band(self, band: int) -> Iterator[JournalEntry]:
        """Yield an entry for the files and data of a band, which is finished at the end of the block.

        If the block raises, nothing is left. If another process finished the band in the meantime, its files stay.

        Raises
        ------
        OutputError
            Files could not be written. An OSError of the block is converted, too.
        """
        self._found.pop(band, None)
        final = self._path(band)
        with self._as_output_error(), temporary_folder(self._folder, final.name) as temporary:
            entry = JournalEntry(temporary / final.name)
            entry.folder.mkdir()
            yield entry
            data = _to_json_value(entry.data)
            files = {}
            for path in sorted(entry.folder.iterdir()):
                fsync(path)
                files[path.name] = _file_checksum(path)
            (entry.folder / _RECORD).write_text(
                _add_checksum({"key": self._key, "files": files, "data": data}), encoding="utf-8"
            )
            fsync(entry.folder / _RECORD)
            fsync(entry.folder)
            try:
                entry.folder.rename(final)
            except OSError:
                if self.load_band(band) is None:
                    entry.folder.rename(final)
            else:
                self._found[band] = data
            fsync(self._folder)

    def file_path(self, band: int, name: str) -> Path:
        """Return the path of a file of a finished band."""
        return self._path(band) / name

    def remove(self) -> None:
        """Remove the journal of a finished map.

        Warns
        -----
        UserWarning
            It cannot be removed.
        """
        try:
            remove_atomically(self._folder)
        except OSError as error:
            warnings.warn(
                f"{self._folder} could not be removed: {error}; it is not needed any more, remove it by hand",
                stacklevel=2,
            )

    @property
    def _key(self) -> str:
        return _sha256({"request": self._request, "plan": self._plan})

    def _path(self, band: int) -> Path:
        return self._folder / f"band-{band:05d}"

    def _bands(self) -> list[Path]:
        return [path for path in self._folder.iterdir() if _BAND.fullmatch(path.name)]

    def _make_folder(self) -> None:
        remove_leftovers(self._folder.parent, self._folder.name)
        if self._folder.exists() and not self._folder.is_dir():
            raise OutputExistsError(
                f"{self._folder} is a file, but finished bands are stored under this name; move it away"
            )
        self._folder.mkdir(exist_ok=True)
        foreign = sorted(path.name for path in self._folder.iterdir() if not _KNOWN_NAMES.fullmatch(path.name))
        if foreign:
            raise OutputExistsError(
                f"{self._folder} stores finished bands of {self._target}, but it contains {foreign[0]}, which is not "
                "from segkit; move it away, or name another output"
            )

    def _continue_or_start(self, *, overwrite: bool) -> None:
        try:
            stored = _read_checked(self._folder / _REQUEST, "request", "plan")
        except (OSError, ValueError):
            stored = None
        if stored and _canonical_json(stored["request"]) == _canonical_json(self._request):
            self._plan = stored["plan"]
            return
        bands = self._bands()
        if bands and not overwrite:
            difference = (
                _describe_difference(stored["request"], self._request)
                if stored
                else f"its {_REQUEST} is missing or damaged"
            )
            raise OutputExistsError(
                f"{self._target}: {len(bands)} finished band(s) of another request are in {self._folder} "
                f"({difference})" + suggest("run the same command to continue", "add --overwrite to start afresh")
            )
        self._start(None)

    def _start(self, plan: Mapping[str, Any] | None) -> None:
        """Remove all bands, then store the request and the plan, so that bands never exist without theirs."""
        self._found.clear()
        for band in self._bands():
            remove_atomically(band)
        with atomic_write(self._folder / _REQUEST) as path:
            path.write_text(_add_checksum({"request": self._request, "plan": plan}), encoding="utf-8")
        self._plan = _to_json_value(plan)

    def _remove_if_empty(self) -> None:
        if self._folder.exists() and not self._bands():
            self.remove()

    @contextmanager
    def _as_output_error(self) -> Iterator[None]:
        try:
            yield
        except SegkitError:
            raise
        except OSError as error:
            raise OutputError(
                f"{self._target}: {self._folder} could not be written: "
                f"{describe_error(error, self._folder.parent)}. Finished bands are kept; the same command resumes"
            ) from error


def _to_json_value(value: Any) -> Any:
    """Return a value as JSON gives it back: tuples as lists, keys as text."""
    return json.loads(json.dumps(value))


def _canonical_json(value: Any) -> str:
    return json.dumps(_to_json_value(value), sort_keys=True)


def _sha256(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical_json(content).encode()).hexdigest()


def _add_checksum(content: Mapping[str, Any]) -> str:
    return json.dumps({"sha256": _sha256(content), **content}, indent=1)


def _read_checked(path: Path, *keys: str) -> dict[str, Any]:
    """Read a file written by `_add_checksum`; raise a ValueError if it has changed, or has other keys."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        content = None
    if not isinstance(content, dict) or content.pop("sha256", None) != _sha256(content) or content.keys() != {*keys}:
        raise ValueError(f"{path.name} has changed")
    return content


def _file_checksum(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            "size": os.fstat(file.fileno()).st_size,
        }


def _describe_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """List the keys whose values differ, with an excerpt of both values from where they differ."""
    differences = []
    for key in {**old, **new}:
        was, now = (_canonical_json(side[key]) if key in side else "not given" for side in (old, new))
        if was != now:
            start = len(os.path.commonprefix([was, now])) - _MAX_VALUE_CHARS // 2  # noqa: RUF071 - a prefix of characters
            differences.append(f"{key} was {_excerpt(was, start)}, is {_excerpt(now, start)}")
    return "; ".join(differences)


def _excerpt(text: str, start: int) -> str:
    start = max(0, min(start, len(text) - _MAX_VALUE_CHARS))
    end = start + _MAX_VALUE_CHARS
    return f"{'...' if start else ''}{text[start:end]}{'...' if end < len(text) else ''}"
