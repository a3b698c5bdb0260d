"""The inputs of a report, sorted by kind."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segkit.errors import DataError, UsageError, suggest
from segkit.io.files import require_file
from segkit.io.paths import FileSet, PathLike
from segkit.io.remote import as_path
from segkit.models.run_folder import METRICS, MODEL

_RASTERS = (".tif", ".tiff")


@dataclass(frozen=True)
class JsonResult:
    """The content of a JSON file, and its title in the report."""

    title: str
    content: dict[str, Any]


@dataclass(frozen=True)
class ReportInputs:
    """The inputs of a report.

    Parameters
    ----------
    run
        A run folder.
    map
        A map.
    evaluations
        Results of `segkit.evaluate`.
    estimates
        Results of ``segkit assess estimate``.
    """

    run: Path | None
    map: Path | None
    evaluations: tuple[JsonResult, ...]
    estimates: tuple[JsonResult, ...]

    @classmethod
    def from_paths(cls, paths: list[PathLike]) -> ReportInputs:
        """Sort paths by the kind of their content.

        Raises
        ------
        MissingFileError
            A path does not exist.
        DataError
            A folder is not a run folder, or a file holds no scores.
        UsageError
            There are no paths, more than one run or map, or a file of another kind.
        """
        runs: list[Path] = []
        maps: list[Path] = []
        evaluations: list[JsonResult] = []
        estimates: list[JsonResult] = []
        for path in map(as_path, paths):
            if isinstance(path, FileSet):
                maps.append(require_file(path, "map"))
            elif path.is_dir():
                runs.append(_require_run(path))
            elif path.suffix.lower() in _RASTERS:
                maps.append(require_file(path, "map"))
            elif path.suffix.lower() == ".json":
                result = _read_result(path)
                (estimates if "proportions" in result.content else evaluations).append(result)
            else:
                require_file(path, "source")
                raise UsageError(
                    f"{path}: not a source of a report; give run folders, maps (.tif), or results (.json) of segkit "
                    "evaluate and segkit assess estimate"
                )
        if not paths:
            raise UsageError("nothing to report; give a run folder, a map, or a file of scores")
        for kind, several in (("run", runs), ("map", maps)):
            if len(several) > 1:
                listed = ", ".join(map(str, several))
                raise UsageError(f"a report shows one {kind}, not {len(several)} ({listed}); write one report for each")
        run, map_ = runs[0] if runs else None, maps[0] if maps else None
        return cls(run, map_, tuple(evaluations), tuple(estimates))


def _require_run(folder: Path) -> Path:
    for name in (MODEL, METRICS):
        if not (folder / name).is_file():
            raise DataError(
                f"{folder}: has no {name}, so it is not a finished run"
                + suggest("give the output of segkit train", "add --mosaic if it holds maps that lie side by side")
            )
    return folder


def _read_result(path: Path) -> JsonResult:
    """Read a JSON file with scores or estimated areas."""
    file = require_file(path, "file of scores")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); give a result of segkit evaluate or assess estimate") from error
    if not isinstance(content, dict) or "per_class" not in content or not content.keys() & {"confusion", "proportions"}:
        raise DataError(
            f"{path}: holds neither scores nor areas; give a result of segkit evaluate -o or segkit assess estimate -o"
        )
    return JsonResult(path.stem, content)
