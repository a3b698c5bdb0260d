"""Sources: what a report is made of, told apart."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segkit.errors import DataError, UsageError
from segkit.io.files import existing
from segkit.io.raster import PathLike
from segkit.models.run_folder import METRICS, MODEL

_RASTERS = (".tif", ".tiff")


@dataclass(frozen=True)
class Numbers:
    """The contents of a JSON file, and what they are called in the report."""

    title: str
    found: dict[str, Any]


@dataclass(frozen=True)
class Sources:
    """All that a report is made of.

    Parameters
    ----------
    run
        The folder of a training.
    map
        A map.
    evaluations
        What `segkit.evaluate` wrote.
    estimates
        What `segkit assess estimate` wrote.
    """

    run: Path | None
    map: Path | None
    evaluations: tuple[Numbers, ...]
    estimates: tuple[Numbers, ...]

    @classmethod
    def of(cls, paths: list[PathLike]) -> Sources:
        """Tell apart what paths lead to.

        Raises
        ------
        MissingFileError
            A path leads nowhere.
        DataError
            A folder is no run, or a file holds no scores.
        UsageError
            There is nothing, more than one run or map, or a file of another kind.
        """
        runs: list[Path] = []
        maps: list[Path] = []
        evaluations: list[Numbers] = []
        estimates: list[Numbers] = []
        for path in map(Path, paths):
            if path.is_dir():
                runs.append(_run(path))
            elif path.suffix.lower() in _RASTERS:
                maps.append(existing(path, "map"))
            elif path.suffix.lower() == ".json":
                numbers = _numbers(path)
                (estimates if "proportions" in numbers.found else evaluations).append(numbers)
            else:
                existing(path, "source")
                raise UsageError(
                    f"{path}: a report is made of runs (folders), maps (.tif), and scores and areas (.json) as "
                    "segkit evaluate and segkit assess estimate write them"
                )
        if not paths:
            raise UsageError("nothing to report; name a run, a map, or a file of scores")
        for what, several in (("run", runs), ("map", maps)):
            if len(several) > 1:
                named = ", ".join(map(str, several))
                raise UsageError(f"a report shows one {what}, not {len(several)} ({named}); make one for each")
        run, map_ = runs[0] if runs else None, maps[0] if maps else None
        return cls(run, map_, tuple(evaluations), tuple(estimates))


def _run(folder: Path) -> Path:
    for name in (MODEL, METRICS):
        if not (folder / name).is_file():
            raise DataError(f"{folder}: holds no {name}, so it is no finished run of segkit train")
    return folder


def _numbers(path: Path) -> Numbers:
    """Read a JSON file with scores of a map or model, or estimated areas."""
    file = existing(path, "file of scores")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: is no JSON ({error}); name what segkit evaluate or assess estimate wrote") from error
    known = isinstance(found, dict) and "per_class" in found and ("confusion" in found or "proportions" in found)
    if not known:
        raise DataError(
            f"{path}: holds neither scores nor areas; name what segkit evaluate -o or segkit assess estimate -o wrote"
        )
    return Numbers(path.stem, found)
