"""The inputs of a report, sorted by kind."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segkit.auditing.results import FILES
from segkit.errors import DataError, UsageError, suggest
from segkit.io.files import require_file
from segkit.io.paths import FileSet, PathLike
from segkit.io.remote import as_path
from segkit.io.vector import layer_names
from segkit.labelling.work_file import LAYERS
from segkit.models.run_folder import METRICS, MODEL

_RASTERS = (".tif", ".tiff")


@dataclass(frozen=True)
class JsonResult:
    """The content of a JSON file of scores or areas."""

    path: Path
    content: dict[str, Any]

    @property
    def title(self) -> str:
        """Its title in the report."""
        return self.path.stem


@dataclass(frozen=True)
class ReportInputs:
    """The inputs of a report.

    Parameters
    ----------
    runs
        Run folders: one, or the rounds of the label loop in their order.
    map
        A map.
    evaluations
        Results of `segkit.evaluate`.
    estimates
        Results of ``segkit assess estimate``.
    windows
        Files of windows to label.
    audits
        Folders of `segkit.audit`.
    """

    runs: tuple[Path, ...]
    map: Path | None
    evaluations: tuple[JsonResult, ...]
    estimates: tuple[JsonResult, ...]
    windows: tuple[Path, ...]
    audits: tuple[Path, ...]

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
            There are no paths, more than one map, a run that is given twice, or a file of another kind.
        """
        runs: list[Path] = []
        maps: list[Path] = []
        evaluations: list[JsonResult] = []
        estimates: list[JsonResult] = []
        windows: list[Path] = []
        audits: list[Path] = []
        for path in map(as_path, paths):
            if isinstance(path, FileSet):
                maps.append(require_file(path, "map"))
            elif _is_audit(path):
                audits.append(path)
            elif path.suffix.lower() == ".gpkg":
                windows.append(_require_windows(path))
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
                    f"{path}: not a source of a report; give folders of segkit train and segkit audit, maps (.tif), "
                    "files of segkit suggest (.gpkg), or results (.json) of segkit evaluate and segkit assess estimate"
                )
        if not paths:
            raise UsageError("nothing to report; give a run folder, a map, or a file of scores")
        if len(maps) > 1:
            listed = ", ".join(map(str, maps))
            raise UsageError(f"a report shows one map, not {len(maps)} ({listed}); write one report for each")
        for several in (runs, windows, audits):
            for number, path in enumerate(several):
                if any(path.samefile(one) for one in several[:number]):
                    raise UsageError(f"{path}: is given twice; give each source once")
        return cls(
            tuple(runs), maps[0] if maps else None, tuple(evaluations), tuple(estimates), tuple(windows), tuple(audits)
        )


def _is_audit(folder: Path) -> bool:
    return folder.is_dir() and any((folder / name).is_file() for name in FILES)


def _require_windows(path: Path) -> Path:
    names = layer_names(require_file(path, "file of windows"))
    if missing := [name for name in LAYERS if name not in names]:
        advice = suggest("give a file of segkit suggest", "of an audit, its folder")
        raise UsageError(f"{path}: has no layer {missing[0]!r}, so it is no file of windows to label{advice}")
    return path


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
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error}); give a result of segkit evaluate or assess estimate") from error
    if not isinstance(content, dict) or "per_class" not in content or not content.keys() & {"confusion", "proportions"}:
        raise DataError(
            f"{path}: holds neither scores nor areas; give a result of segkit evaluate -o or segkit assess estimate -o"
        )
    return JsonResult(path, content)
