"""Write a report of a training run, a map and its areas: an HTML page that works offline, and PNGs for publications."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from segkit.errors import DataError, OutputExistsError, SegkitError, UsageError, first_line, suggest
from segkit.io.files import atomic_write, check_distinct, check_folder, check_output
from segkit.io.paths import PathLike, list_files
from segkit.io.remote import as_path
from segkit.runtime.deprecation import renamed_keywords

if TYPE_CHECKING:
    from segkit.io.scene import Scene
    from segkit.recipe.label_source import LabelSource
    from segkit.reporting.sections import ReportBuilder

__all__ = ["Report", "report"]


@dataclass(frozen=True)
class Report:
    """The files that `report` wrote.

    Parameters
    ----------
    path
        The page; None if only PNGs were requested.
    pictures
        The PNGs.
    """

    path: Path | None
    pictures: tuple[Path, ...]


@renamed_keywords(names="class_names", boundary="boundary_width", objects="min_object_area")
def report(
    sources: PathLike | Sequence[PathLike],
    output: PathLike | None = None,
    *,
    png: PathLike | None = None,
    images: PathLike | Sequence[PathLike] | None = None,
    labels: PathLike | LabelSource | None = None,
    probabilities: PathLike | None = None,
    class_names: PathLike | None = None,
    ignore: Sequence[int] = (),
    boundary_width: str = "2px",
    min_object_area: str = "1px",
    device: str = "auto",
    precision: str = "auto",
    overwrite: bool = False,
    show_progress: bool = False,
) -> Report:
    """Write a report of a training run, a map, scores and estimated areas.

    Parameters
    ----------
    sources
        One or more of: a run folder, whose model is evaluated on its validation areas; a map (.tif, or a
        `segkit.Mosaic` of maps that are one), at most one; a result of `segkit.evaluate` (.json); a result of
        ``segkit assess estimate`` (.json); a file of `segkit.suggest` (.gpkg); a folder of `segkit.audit`. Several
        runs are the rounds of the label loop in their order; the last is shown in full.
    output
        The page (.html).
    png
        A folder for all charts, tiles and maps as PNG; it is created if its parent exists.
    images, labels, probabilities, class_names, ignore
        Files that belong to the map: imagery (one or more files whose bands are stacked), labels, a raster of
        probabilities with a band per class, and a CSV file of class names. `ignore`: label codes of unlabelled pixels.
        With labels the map is scored. Without a map, `images` are the scenes of windows to label, and with
        `labels` those on which the models of several runs are scored.
    boundary_width, min_object_area
        Boundary width and minimum object size, as for `segkit.evaluate`.
    device, precision
        For the run's model, as for `segkit.predict`.

    Raises
    ------
    UsageError, OutputExistsError
        No source or output is given, an output cannot be written, or the type of a source is not supported.
    SegkitError
        A source does not exist, is damaged, or is not on the grid of the map.
    """
    paths = [sources] if isinstance(sources, (str, Path)) or not isinstance(sources, Sequence) else list(sources)
    target, folder = _outputs(output, png, overwrite=overwrite)

    from segkit.auditing.results import FILES
    from segkit.inference.settings import PredictOptions
    from segkit.io.quantities import parse_area, parse_length
    from segkit.reporting.html import render_page
    from segkit.reporting.inputs import ReportInputs
    from segkit.reporting.sections import ReportBuilder

    inputs = ReportInputs.from_paths(paths)
    files = [
        as_path(path) for path in (*paths, *_as_list(images), *_as_list(labels), probabilities, class_names) if path
    ]
    for run in inputs.runs:
        files += _files_of_run(run)
    files += [folder / name for folder in inputs.audits for name in FILES]
    # The PNGs' names depend on the results, so none may have the name of an input.
    read = [file for path in files for file in list_files(path)]
    pngs = [] if folder is None else [folder / path.name for path in read if path.suffix.lower() == ".png"]
    check_distinct([target, *pngs], read)
    width, size = parse_length(boundary_width, "boundary width"), parse_area(min_object_area, "minimum object area")
    of_map = {
        "--images": images,
        "--labels": labels,
        "--probabilities": probabilities,
        "--class-names": class_names,
        "--ignore": ignore or None,
    }
    of_loop = {"--images"} if inputs.windows else set()
    of_loop |= {"--images", "--labels"} if len(inputs.runs) > 1 and labels is not None else set()
    extra = [option for option, value in of_map.items() if value is not None and option not in of_loop]
    if inputs.map is None and extra:
        raise UsageError(f"{', '.join(extra)}: only for a map, and no map is given; give a map (.tif) or leave it out")
    if inputs.map is None and labels is not None and images is None:
        raise UsageError("--labels: which runs are scored on needs their imagery; add --images")
    with TemporaryDirectory(prefix="segkit-report-") as temporary_folder:
        options = PredictOptions(device=device, precision=precision)
        builder = ReportBuilder(Path(temporary_folder), width, size, options, show_progress=show_progress)
        if len(inputs.runs) > 1:
            builder.add_rounds(inputs.runs, *((images, labels) if inputs.map is None else (None, None)))
        for run in inputs.runs[-1:]:
            builder.add_run(run)
        if inputs.map is not None:
            builder.add_map(inputs.map, images, labels, probabilities, class_names, ignore)
        for result in inputs.evaluations:
            with _refusing_damage(result.path, builder):
                builder.add_scores(result.title, result.content)
        for result in inputs.estimates:
            with _refusing_damage(result.path, builder):
                builder.add_estimate(result.title, result.content)
        for path in inputs.windows:
            builder.add_windows(path, None if images is None else _scenes(images, stacked=inputs.map is not None))
        for audited in inputs.audits:
            builder.add_audit(audited)
        pictures = () if folder is None else builder.write_pngs(folder)
        if target is not None:
            today = datetime.now(UTC)
            subtitle = f"{builder.contents}, {today.day} {today:%b %Y}"
            page = render_page(builder.title, subtitle, builder.sections, builder.scenes, builder.states.states)
            with atomic_write(target) as temporary:
                temporary.write_text(page, encoding="utf-8")
    return Report(target, pictures)


@contextmanager
def _refusing_damage(path: Path, builder: ReportBuilder) -> Iterator[None]:
    """Raise a DataError if the last section, which is added here, cannot be shown with the values of a JSON file."""
    from jinja2 import TemplateError

    from segkit.reporting.html import render_page

    try:
        yield
        render_page("", "", builder.sections[-1:], [], [])
    except (ArithmeticError, AttributeError, LookupError, TemplateError, TypeError, ValueError) as error:
        if isinstance(error, SegkitError):
            raise
        raise DataError(
            f"{path}: its scores or areas are damaged ({first_line(error)}); write them again with segkit evaluate -o "
            "or segkit assess estimate -o"
        ) from error


def _files_of_run(run: Path) -> list[Path]:
    """Return the files that a report of a run reads."""
    from segkit.data.pairing import recipe_files
    from segkit.models.model_file import read_header
    from segkit.models.run_folder import LOG, METRICS, MODEL, RECIPE
    from segkit.recipe.schema import Recipe

    recipe = Recipe.from_dict(read_header(run / MODEL).recipe)
    files = [run / name for name in (MODEL, METRICS, RECIPE, LOG)]
    with suppress(SegkitError):  # a missing scene is reported later
        files += recipe_files(recipe)
    return files


def _scenes(images: PathLike | Sequence[PathLike], *, stacked: bool) -> list[Scene]:
    """Return the bands that are shown of the imagery of a map, which is one scene, or of several scenes."""
    from segkit.inference.scene_files import find_scenes
    from segkit.io.scene import Scene
    from segkit.reporting.map_views import select_display_bands

    found = [images] if stacked else find_scenes(images, vrt=True)
    return [select_display_bands(Scene.from_files(files, vrt=None))[0] for files in found]


def _as_list(paths: PathLike | Sequence[PathLike] | LabelSource | None) -> Sequence[PathLike]:
    if paths is None or isinstance(paths, (str, os.PathLike)):
        return [] if paths is None else [paths]
    return paths if isinstance(paths, Sequence) else paths.paths


def _outputs(output: PathLike | None, png: PathLike | None, *, overwrite: bool) -> tuple[Path | None, Path | None]:
    if output is None and png is None:
        raise UsageError(
            "nothing to write" + suggest("give a page (--output report.html)", "a folder for PNGs (--png DIR)", "both")
        )
    target = None if output is None else check_output(output, overwrite=overwrite)
    if target is not None and target.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{target}: a report is an HTML page; give a file name that ends in .html")
    folder = None if png is None else check_folder(png, "pictures")
    if folder is not None and folder.is_dir() and not overwrite and any(folder.glob("*.png")):
        raise OutputExistsError(
            f"{folder}: contains PNGs" + suggest("add --overwrite to replace those with the same name")
        )
    return target, folder
