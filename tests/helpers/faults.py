"""Damage files, run the command line on them in this process, and say how each run ended."""

import contextlib
import io
import os
import shutil
import sys
import warnings
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from unittest import mock

import numpy as np
import pyogrio
import rasterio
from safetensors.numpy import load_file

from segkit.cli import app

# Ends of a run that break no promise; the others are findings.
SAME, CHANGED, REFUSED = "right", "changed", "refused"
# What a message must not hold: an error that nobody foresaw, and signs of a huge allocation or a traceback.
FINDINGS = {
    "segkit: unexpected ": "unforeseen error",
    "Traceback": "traceback",
    "not enough memory": "huge allocation",
}
# What may stay behind a failed prediction, by its documentation.
_KEPT = (".bands",)


@dataclass(frozen=True)
class Run:
    """How a command ended."""

    code: int
    said: str
    outputs: dict[str, str] = field(default_factory=dict)
    printed: str = ""


@dataclass(frozen=True)
class Case:
    """A kind of file, and a command that reads it.

    Parameters
    ----------
    folder
        The undamaged files, all of which the command reads by paths relative to this folder.
    file
        The file that is damaged.
    arguments
        The command; outputs are in `out/`.
    checked
        Whether the file has a checksum, so that no damage may change a result.
    text
        Whether a file that ends early may be a valid, shorter one.
    prints
        Whether the result is what the command prints.
    head
        Only so many bytes at the start of the file are damaged.
    judged
        Ending of the names of the outputs that make the result; others hold times.
    environment
        Environment variables, whose values are paths relative to the folder.
    """

    name: str
    folder: Path
    file: str
    arguments: tuple[str, ...]
    checked: bool = False
    text: bool = False
    prints: bool = False
    head: int | None = None
    judged: str = ""
    environment: tuple[tuple[str, str], ...] = ()


def cuts(size, count, random):
    """Yield functions that shorten a file of `size` bytes: to nothing, by one byte, and to random sizes."""
    for end in [0, size - 1, *random.integers(1, max(2, size - 1), max(0, count - 2)).tolist()][:count]:
        yield f"cut at {end}", lambda content, end=end: content[:end]


def flips(size, count, random, head=None):
    """Yield functions that turn one bit of a file; half of the bits are in its first 512 bytes, where headers are."""
    limit = min(size, head or size)
    for number in range(count):
        at = int(random.integers(min(512, limit) if number % 2 else limit))
        bit = int(random.integers(8))

        def flip(content, at=at, bit=bit):
            return content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]

        yield f"bit {bit} of byte {at}", flip


def damages(case, n_cuts, n_flips, seed=0):
    """Yield (name, function from whole to damaged content)."""
    size = (case.folder / case.file).stat().st_size
    random = np.random.default_rng(seed)
    yield from cuts(size, n_cuts, random)
    yield from flips(size, n_flips, random, case.head)


def call(arguments, folder, environment=()):
    """Run the command line in a folder, in this process; return its end."""
    variables = {name: str(Path(folder) / path) for name, path in environment}
    printed, said = io.StringIO(), io.StringIO()
    before = Path.cwd()
    os.chdir(folder)
    try:
        with (
            mock.patch.dict(os.environ, variables),
            mock.patch.object(sys, "argv", ["segkit", *map(str, arguments)]),
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(said),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("default")
            try:
                app.main()
            except SystemExit as ended:
                code = ended.code
            except BaseException as error:  # noqa: BLE001 - a finding
                return Run(-1, f"Traceback {type(error).__name__}: {error}")
    finally:
        os.chdir(before)
    return Run(code, said.getvalue(), contents(Path(folder) / "out"), printed.getvalue())


def contents(folder):
    """Return {name: digest} of the files in a folder; of rasters, the digest is that of grid and pixels."""
    return {str(path.relative_to(folder)): _digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def _digest(path):
    if path.suffix == ".tif":
        with contextlib.suppress(Exception), rasterio.open(path) as file:
            pixels = file.read().tobytes()
            return sha256(pixels + repr((file.transform, file.crs, file.nodata, file.dtypes)).encode()).hexdigest()
    if path.suffix == ".safetensors":  # the header holds a date
        with contextlib.suppress(Exception):
            arrays = sorted(load_file(path).items())
            return sha256(b"".join(name.encode() + array.tobytes() for name, array in arrays)).hexdigest()
    if path.suffix == ".gpkg":  # the file holds dates
        with contextlib.suppress(Exception):
            names = sorted({name for name, _ in pyogrio.list_layers(path)} - {"layer_styles"})
            layers = [pyogrio.read_dataframe(path, layer=name) for name in names]
            return sha256(repr([layer.to_csv() for layer in layers]).encode()).hexdigest()
    return sha256(path.read_bytes()).hexdigest()


def _bytes(folder):
    found = (path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).parts[0] != "out")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def prepare(case, work):
    """Copy the undamaged files into an empty folder, with an empty `out/`."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(case.folder, work)
    (work / "out").mkdir(exist_ok=True)


def undamaged(case, work):
    """Return the end of the command on whole files, which must be a result."""
    prepare(case, work)
    run = call(case.arguments, work, case.environment)
    assert run.code == 0, f"{case.name}: {run.said}"
    return run


def classify(case, run, whole, before, work, damage, present=None):
    """Return how a run on damaged files ended: SAME, CHANGED, REFUSED, or a finding.

    `present` are the contents of `out/` before the run, which must stay if it fails.
    """
    present = present or {}
    for words, finding in FINDINGS.items():
        if words in run.said:
            return finding
    if _bytes(work) != before:
        return "input changed"
    if run.code:
        changed = {name for name, _ in run.outputs.items() ^ present.items()}
        left = sorted(name for name in changed if not any(kept in Path(name).parts[0] for kept in _KEPT))
        if left:
            return f"left behind: {left}"
        last = (run.said.splitlines() or [""])[-1]
        is_clear = last.startswith("segkit: ") or (case.prints and run.printed)  # check lists problems in its result
        return REFUSED if run.code in (1, 2) and is_clear else f"exit code {run.code} without a line"
    outputs, expected = (
        {name: digest for name, digest in one.outputs.items() if name.endswith(case.judged)} for one in (run, whole)
    )
    if outputs == expected and (not case.prints or run.printed == whole.printed):
        return SAME
    if case.checked or (damage.startswith("cut") and not case.text):
        return "wrong result"
    return CHANGED


def run_damaged(case, whole, work, damage, change):
    """Damage the file, run the command, and return its class and what it said."""
    prepare(case, work)
    path = work / case.file
    path.write_bytes(change(path.read_bytes()))
    before, present = _bytes(work), contents(work / "out")
    run = call(case.arguments, work, case.environment)
    return classify(case, run, whole, before, work, damage, present), run.said
