"""Report: one page about a training, a map and its areas, that opens without a network; and its pictures for papers.

`inputs` tells apart what it is made of, and `sections` has its text and figures. `decision_maps` writes what a run's
model decides while it is scored, `map_views` reads maps closely and from afar. `viewer` is the map to pan and to zoom,
`html` writes all of it as HTML.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from segkit.errors import OutputExistsError, SegkitError, UsageError, ways
from segkit.io.files import check_apart, check_folder, check_output, staged
from segkit.io.raster import PathLike
from segkit.io.remote import located

if TYPE_CHECKING:
    from segkit.recipe.schema import LabelSource

__all__ = ["Report", "report"]


@dataclass(frozen=True)
class Report:
    """What `report` wrote.

    Parameters
    ----------
    path
        The page, None where only pictures were asked for.
    pictures
        The PNGs.
    """

    path: Path | None
    pictures: tuple[Path, ...]


def report(
    sources: PathLike | Sequence[PathLike],
    output: PathLike | None = None,
    *,
    png: PathLike | None = None,
    images: PathLike | Sequence[PathLike] | None = None,
    labels: PathLike | LabelSource | None = None,
    probabilities: PathLike | None = None,
    names: PathLike | None = None,
    ignore: Sequence[int] = (),
    boundary: str = "2px",
    objects: str = "1px",
    device: str = "auto",
    precision: str = "auto",
    overwrite: bool = False,
    show_progress: bool = False,
) -> Report:
    """Write a page about what was trained, how good it is, and what it maps.

    Parameters
    ----------
    sources
        One or more of: the folder of a run, whose model is scored on its validation areas; a map (.tif); scores as
        `segkit.evaluate` writes them (.json), and areas as ``segkit assess estimate`` writes them (.json). At most one
        run and one map.
    output
        The page (.html).
    png
        A folder for the page's pictures as PNG; made where its parent exists.
    images, labels, probabilities, names, ignore
        Of the map: the files whose bands are its imagery, its labels with the codes in them that mean "not known", a
        raster with a band per class, and a CSV file of class names. With labels the map is scored.
    boundary, objects
        Width of boundaries and smallest object, as for `segkit.evaluate`.
    device, precision
        Of the run's model, as for `segkit.predict`.

    Raises
    ------
    UsageError, OutputExistsError
        Nothing is asked for, or an output cannot be written; a source is of no known kind.
    SegkitError
        A source is missing, is damaged, or does not lie on the map's grid.
    """
    given = [sources] if isinstance(sources, (str, Path)) or not isinstance(sources, Sequence) else list(sources)
    target, folder = _outputs(output, png, overwrite=overwrite)

    from segkit.data.pairing import recipe_files
    from segkit.inference.settings import Options
    from segkit.io.quantities import area, length
    from segkit.models.model_file import read_header
    from segkit.models.run_folder import LOG, METRICS, MODEL, RECIPE
    from segkit.recipe.schema import Recipe
    from segkit.reporting.html import render
    from segkit.reporting.inputs import Sources
    from segkit.reporting.sections import Story

    found = Sources.of(given)
    read = [located(path) for path in (*given, *_listed(images), *_listed(labels), probabilities, names) if path]
    if found.run is not None:
        recipe = Recipe.from_dict(read_header(found.run / MODEL).recipe)
        read += [found.run / name for name in (MODEL, METRICS, RECIPE, LOG)]
        with suppress(SegkitError):  # scenes that are gone, of which the report tells
            read += recipe_files(recipe)
    # Pictures are called after what they show, which is not known yet.
    named = [] if folder is None else [folder / path.name for path in read if path.suffix.lower() == ".png"]
    check_apart([target, *named], read)
    width, size = length(boundary, "boundary"), area(objects, "objects")
    beside = {"--images": images, "--labels": labels, "--probabilities": probabilities, "--names": names}
    if found.map is None and (extra := [option for option, value in beside.items() if value is not None]):
        raise UsageError(f"{', '.join(extra)}: belongs to a map, and no map was named")
    with TemporaryDirectory(prefix="segkit-report-") as scratch:
        options = Options(device=device, precision=precision)
        story = Story(Path(scratch), width, size, options, show_progress=show_progress)
        if found.run is not None:
            story.tell_run(found.run)
        if found.map is not None:
            story.tell_map(found.map, images, labels, probabilities, names, ignore)
        for numbers in found.evaluations:
            story.tell_scores(numbers.title, numbers.found)
        for numbers in found.estimates:
            story.tell_estimate(numbers.title, numbers.found)
        pictures = () if folder is None else story.draw(folder)
        if target is not None:
            made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
            page = render(
                story.title, f"{story.subtitle}Report of {made}", story.sections, story.scenes, story.states.states
            )
            with staged(target) as part:
                part.write_text(page, encoding="utf-8")
    return Report(target, pictures)


def _listed(paths: PathLike | Sequence[PathLike] | LabelSource | None) -> Sequence[PathLike]:
    if paths is None or isinstance(paths, (str, os.PathLike)):
        return [] if paths is None else [paths]
    return paths if isinstance(paths, Sequence) else paths.paths


def _outputs(output: PathLike | None, png: PathLike | None, *, overwrite: bool) -> tuple[Path | None, Path | None]:
    if output is None and png is None:
        raise UsageError(
            "nothing to write" + ways("name a page (--output report.html)", "a folder for pictures (--png DIR)", "both")
        )
    target = None if output is None else check_output(output, overwrite=overwrite)
    if target is not None and target.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{target}: a report is a page; name a file that ends in .html")
    folder = None if png is None else check_folder(png, "pictures")
    if folder is not None and folder.is_dir() and not overwrite and any(folder.glob("*.png")):
        raise OutputExistsError(
            f"{folder}: holds pictures already" + ways("add --overwrite to replace those of one name")
        )
    return target, folder
