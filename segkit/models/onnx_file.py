"""The metadata of ONNX files, read without a runtime; files that would read other files are refused."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from segkit.errors import ModelFileError
from segkit.io.files import require_file
from segkit.io.paths import PathLike

_MAX_METADATA_BYTES = 2**25
_MAX_DEPTH = 100  # of graphs inside of graphs
# Fields of ONNX's messages (onnx.proto3) that hold messages in which a tensor may be: {message: {number: message}}.
_INSIDE = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_METADATA, _KEY, _VALUE = 14, 1, 2  # of the model, and of an entry
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # of a tensor
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5  # wire types of protobuf
_MAX_VARINT_BYTES = 10


def read_onnx_metadata(path: PathLike) -> dict[str, str]:
    """Return the metadata of an ONNX file, after a check that it reads no other file.

    The file is mapped into memory, and weights are skipped, so this takes no memory but that of the metadata.

    Raises
    ------
    MissingFileError, ModelFileError
        The file is missing, damaged or no ONNX file; its weights are in other files; its metadata are too long.
    """
    file = require_file(path, "model file")
    if file.is_dir():
        raise ModelFileError(f"{file} is a folder; name the model file")
    if not file.stat().st_size:
        raise ModelFileError(f"{file}: is empty, so no ONNX file")
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            return _scan(file, content)
        except ModelFileError:
            raise
        except (ValueError, IndexError, RecursionError) as error:
            raise ModelFileError(f"{file}: is no ONNX file, or damaged") from error


def _scan(file: Path, content: mmap.mmap) -> dict[str, str]:
    """Look at each message of a file that may hold a tensor; return the metadata."""
    metadata: dict[str, str] = {}
    size = 0
    waiting = [("model", 0, len(content), 0)]
    while waiting:
        kind, start, stop, depth = waiting.pop()
        if depth > _MAX_DEPTH:
            raise ValueError("nested too deeply")
        for number, wire, first, last in _fields(content, start, stop):
            if kind == "tensor" and number in (_EXTERNAL_DATA, _DATA_LOCATION) and (wire == _BYTES or content[first]):
                raise ModelFileError(
                    f"{file}: its weights are in other files, which are not opened; save it as one file "
                    "(as segkit export does)"
                )
            if wire == _BYTES and number in _INSIDE[kind]:
                waiting.append((_INSIDE[kind][number], first, last, depth + 1))
            elif kind == "model" and number == _METADATA and wire == _BYTES:
                size += last - first
                if size > _MAX_METADATA_BYTES:
                    raise ModelFileError(
                        f"{file}: its metadata take more than {_MAX_METADATA_BYTES // 2**20} MB, which no export needs"
                    )
                entry = {key: content[at:end] for key, _, at, end in _fields(content, first, last)}
                metadata[entry.get(_KEY, b"").decode()] = entry.get(_VALUE, b"").decode()
    return metadata


def _fields(content: mmap.mmap, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield number, wire type, and first and last byte (exclusive) of each field of a message.

    Raises
    ------
    ValueError
        The message is damaged.
    """
    while start < stop:
        tag, start = _read_varint(content, start, stop)
        number, wire = tag >> 3, tag & 7
        if wire == _BYTES:
            length, start = _read_varint(content, start, stop)
        elif wire == _VARINT:
            length = _read_varint(content, start, stop)[1] - start
        elif wire in (_EIGHT_BYTES, _FOUR_BYTES):
            length = 8 if wire == _EIGHT_BYTES else 4
        else:
            raise ValueError(f"wire type {wire}")
        if not number or start + length > stop:
            raise ValueError("a field that is longer than its message")
        yield number, wire, start, start + length
        start += length


def _read_varint(content: mmap.mmap, start: int, stop: int) -> tuple[int, int]:
    """Return a number, and where the next field starts."""
    value = 0
    for count, byte in enumerate(content[start : min(stop, start + _MAX_VARINT_BYTES)]):
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value, start + count + 1
    raise ValueError("a number that does not end")
