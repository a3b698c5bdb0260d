"""Journal: finished bands of a map, kept beside it until it is whole.

::

    map.tif.bands/
        request.json                   what was asked for, and the plan that was made for it
        band-00003/                    a finished band: its files ...
            record.json                ... and their checksums
        .band-00004.1f2e3d4c.part/     a band in work, or what a killed process left of one

A band appears by one rename and goes by one, so it is there whole or not at all, whoever is killed and when. Its record
carries a key made of request and plan: a band that a straggler finishes for another request never counts.
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

from segkit.errors import OutputError, OutputExistsError, SegkitError, ways
from segkit.io.files import because, discard, locked, remove_leftovers, scratch, staged, sync

_REQUEST = "request.json"
_RECORD = "record.json"
_BAND = re.compile(r"band-\d{5,}")
# What may lie in a journal: its own, and what network file systems and file managers leave in any folder.
_OWN = re.compile(rf"{_BAND.pattern}|request\.json|\.lock|\..+\.part|\.nfs.*|\.DS_Store")
# Characters of a value in a message.
_SHOWN = 40


@dataclass
class BandFolder:
    """A band in work: a folder for its files, and what else is to be remembered of it, JSON-able."""

    folder: Path
    data: dict[str, Any] = field(default_factory=dict)


class Journal:
    """The finished bands of one target, made by `Journal.open`.

    It may be pickled: a copy writes and finds bands of the same request and plan, on any machine that sees the folder
    under the same path. Copies hold no lock.
    """

    def __init__(self, target: Path, request: Mapping[str, Any]) -> None:
        self._target = target
        self._folder = target.with_name(f"{target.name}.bands").absolute()
        self._request = _plain(request)
        self._plan: dict[str, Any] | None = None
        self._found: dict[int, dict[str, Any]] = {}

    @classmethod
    @contextmanager
    def open(cls, target: Path, request: Mapping[str, Any], *, overwrite: bool) -> Iterator[Journal]:
        """Continue the journal of a request, or start one; no other process can while the block lasts.

        A journal in which nothing is settled or finished at the end leaves no folder.

        Parameters
        ----------
        target
            The map; the journal is the folder `<target>.bands` beside it.
        request
            Everything that decides the result, JSON-able; its keys are words that a user understands.
        overwrite
            Whether finished bands of another request are thrown away.

        Raises
        ------
        OutputExistsError
            Finished bands of another request are there and `overwrite` is false, or files that are not a journal's.
        OutputError
            Another process has it open, or the folder cannot be written.
        """
        journal = cls(target, request)
        folder = journal._folder
        with ExitStack() as stack:
            with journal._telling():
                journal._make_folder()
                # A network file system keeps a locked folder that is removed, so what is left goes after the lock.
                stack.callback(remove_leftovers, folder.parent, folder.name)
                try:
                    stack.enter_context(locked(folder))
                except (BlockingIOError, FileNotFoundError):
                    raise OutputError(
                        f"{target}: another segkit predict is at work on it; let it finish, or name another output"
                    ) from None
                stack.callback(journal._remove_if_empty)
                remove_leftovers(folder)
                journal._continue_or_start(overwrite=overwrite)
            yield journal

    @classmethod
    def clear(cls, target: Path) -> None:
        """Remove the journal of a target that is finished, where a killed process has left it or a part of it."""
        remove_leftovers(target.parent, f"{target.name}.bands")
        folder = target.with_name(f"{target.name}.bands")
        with suppress(BlockingIOError, FileNotFoundError), locked(folder):  # in use, or not there
            cls(target, {}).remove()

    @property
    def plan(self) -> dict[str, Any] | None:
        """The choices that were made for the request, once they are settled."""
        return self._plan

    def settle(self, plan: Mapping[str, Any]) -> None:
        """Remember the choices made for the request, JSON-able; bands that were finished under others are removed."""
        if _text(plan) != _text(self._plan):
            with self._telling():
                self._start(plan)

    def finished(self, band: int) -> dict[str, Any] | None:
        """Return the data of a finished band, None where it has to be computed.

        Its files are compared with their checksums, once per Journal. A band that is damaged is removed.

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
                record = _read(folder / _RECORD)
                if record["key"] != self._key:
                    raise ValueError("it is of another request or plan")
                for name, expected in record["files"].items():
                    if _checksum(folder / name) != expected:
                        raise ValueError(f"{name} has changed")
            except (OSError, ValueError) as error:
                warnings.warn(f"{self._target}: band {band} is damaged and has to be redone: {error}", stacklevel=2)
                with self._telling():
                    discard(folder)
                return None
            self._found[band] = record["data"]
        return self._found[band]

    @contextmanager
    def writing(self, band: int) -> Iterator[BandFolder]:
        """Give a folder for the files of a band, and a place for its data; the band is finished when the block ends.

        When the block raises, nothing of it is left. When somebody else has finished the band meanwhile, theirs stays.

        Raises
        ------
        OutputError
            Files could not be written, in the block or after it: an OSError there is told as this.
        """
        self._found.pop(band, None)
        final = self._path(band)
        with self._telling(), scratch(self._folder, final.name) as room:
            work = BandFolder(room / final.name)
            work.folder.mkdir()
            yield work
            data = _plain(work.data)
            files = {}
            for path in sorted(work.folder.iterdir()):
                sync(path)
                files[path.name] = _checksum(path)
            (work.folder / _RECORD).write_text(_sealed({"key": self._key, "files": files, "data": data}))
            sync(work.folder / _RECORD)
            sync(work.folder)
            try:
                work.folder.rename(final)
            except OSError:
                if self.finished(band) is None:
                    work.folder.rename(final)
            else:
                self._found[band] = data
            sync(self._folder)

    def file(self, band: int, name: str) -> Path:
        """Return the path of a file of a finished band."""
        return self._path(band) / name

    def remove(self) -> None:
        """Remove the journal: the map is there.

        Warns
        -----
        UserWarning
            It cannot be removed; it is only in the way then.
        """
        try:
            discard(self._folder)
        except OSError as error:
            warnings.warn(f"{self._folder} is not needed any more, but could not be removed: {error}", stacklevel=2)

    @property
    def _key(self) -> str:
        return _digest({"request": self._request, "plan": self._plan})

    def _path(self, band: int) -> Path:
        return self._folder / f"band-{band:05d}"

    def _bands(self) -> list[Path]:
        return [path for path in self._folder.iterdir() if _BAND.fullmatch(path.name)]

    def _make_folder(self) -> None:
        remove_leftovers(self._folder.parent, self._folder.name)
        if self._folder.exists() and not self._folder.is_dir():
            raise OutputExistsError(f"{self._folder} is a file, and finished bands are kept there; move it away")
        self._folder.mkdir(exist_ok=True)
        foreign = sorted(path.name for path in self._folder.iterdir() if not _OWN.fullmatch(path.name))
        if foreign:
            raise OutputExistsError(
                f"{self._folder} is where finished bands of {self._target} are kept, but {foreign[0]} in it is not "
                "segkit's; move it away, or name another output"
            )

    def _continue_or_start(self, *, overwrite: bool) -> None:
        try:
            stored = _read(self._folder / _REQUEST)
        except (OSError, ValueError):
            stored = None
        if stored and _text(stored["request"]) == _text(self._request):
            self._plan = stored["plan"]
            return
        bands = self._bands()
        if bands and not overwrite:
            difference = (
                _difference(stored["request"], self._request) if stored else f"its {_REQUEST} is missing or damaged"
            )
            raise OutputExistsError(
                f"{self._target}: {len(bands)} finished band(s) of another request are in {self._folder} "
                f"({difference})" + ways("run the same command to continue", "add --overwrite to start afresh")
            )
        self._start(None)

    def _start(self, plan: Mapping[str, Any] | None) -> None:
        """Remove all bands, then store the request with a plan: as long as a band is there, so is what it is of."""
        self._found.clear()
        for band in self._bands():
            discard(band)
        with staged(self._folder / _REQUEST) as part:
            part.write_text(_sealed({"request": self._request, "plan": plan}))
        self._plan = _plain(plan)

    def _remove_if_empty(self) -> None:
        if self._folder.exists() and not self._bands():
            self.remove()

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except SegkitError:
            raise
        except OSError as error:
            raise OutputError(
                f"{self._target}: {self._folder} could not be written: "
                f"{because(error, self._folder.parent)}. Finished bands are kept, and the same command continues"
            ) from error


def _plain(value: Any) -> Any:
    """Return a value as it will be read back: tuples as lists, keys as text."""
    return json.loads(json.dumps(value))


def _text(value: Any) -> str:
    return json.dumps(_plain(value), sort_keys=True)


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(_text(content).encode()).hexdigest()


def _sealed(content: Mapping[str, Any]) -> str:
    return json.dumps({"sha256": _digest(content), **content}, indent=1)


def _read(path: Path) -> dict[str, Any]:
    """Return what was written with `_sealed`; a ValueError tells that it has changed since."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or content.pop("sha256", None) != _digest(content):
        raise ValueError(f"{path.name} has changed")
    return content


def _checksum(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            "size": os.fstat(file.fileno()).st_size,
        }


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Name the keys whose values differ, with both values, cut to where they begin to differ."""
    told = []
    for key in {**old, **new}:
        was, now = (_text(side[key]) if key in side else "not given" for side in (old, new))
        if was != now:
            start = len(os.path.commonprefix([was, now])) - _SHOWN // 2  # noqa: RUF071 - characters are meant
            told.append(f"{key} was {_shortened(was, start)}, is {_shortened(now, start)}")
    return "; ".join(told)


def _shortened(text: str, start: int) -> str:
    start = max(0, min(start, len(text) - _SHOWN))
    end = start + _SHOWN
    return f"{'...' if start else ''}{text[start:end]}{'...' if end < len(text) else ''}"
