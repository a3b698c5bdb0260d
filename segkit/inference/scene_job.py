"""Work: the steps that take one scene from its files to its maps, with a journal between."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segkit.inference.executor import Steps, settled
from segkit.inference.journal import Journal
from segkit.inference.runner import NotCompiled, TileTooLarge
from segkit.inference.settings import Choice, Options
from segkit.inference.summary import Summary, peak_memory, total
from segkit.inference.tasks import Assemble, BandUnit, Find, Look, SeamUnit
from segkit.io.cog import Part

if TYPE_CHECKING:
    from segkit.models.segmenter import Segmenter


def predict_scene(
    model: Segmenter,
    files: tuple[Path, ...],
    rasters: Mapping[str, Path],
    options: Options,
    request: Mapping[str, Any],
    *,
    vrt: bool = False,
    overwrite: bool = False,
    show_progress: bool = False,
) -> Steps:
    """Map one scene; what an earlier call with the same request has finished is taken over.

    Parameters
    ----------
    model
        Tells what it is about; whoever works the units has one of their own.
    files
        The scene's.
    rasters
        Where each product goes (keys of `PRODUCTS`); the journal lies beside the map.
    options
        How to predict.
    request
        Everything that decides the pixels, as `Journal.open` compares it.

    Yields
    ------
    The units of each step; see `executor`.

    Raises
    ------
    OutputExistsError
        Unfinished work of another request is there, and `overwrite` is false.
    SegkitError
        The scene is damaged, or its map cannot be written.
    """
    started = time.perf_counter()
    name, products = files[0].stem, tuple(rasters)
    with Journal.open(rasters["map"], request, overwrite=overwrite) as journal:
        plan = journal.plan
        while True:
            look = [Look(name, files, vrt, options, plan)]
            [(scene, choice)] = settled(look, (yield look))
            journal.settle(asdict(choice))
            tiling = choice.tiling(scene.grid, model.stride)
            bands = tiling.bands
            find = [Find(name, journal, tuple(band.index for band in bands))]
            [counts] = settled(find, (yield find))
            resumed = len(counts)
            left = [
                BandUnit.of(scene, options, choice, journal, tiling, band, products)
                for band in bands
                if band.index not in counts
            ]
            if left and counts and show_progress:
                print(f"{name}: going on, {resumed} of {len(bands)} bands are finished", file=sys.stderr)
            try:
                if left:
                    found = settled(left, (yield left), also=(TileTooLarge, NotCompiled))
                    counts |= {unit.band.index: data for unit, data in zip(left, found, strict=True)}
                break
            except TileTooLarge as error:
                smaller = choice.smaller()
                if smaller is None:
                    raise
                warnings.warn(f"{error}; going on with {smaller.tile}", stacklevel=2)
                plan = asdict(smaller)
            except NotCompiled as error:
                warnings.warn(f"{error}; going on without", stacklevel=2)
                plan = asdict(replace(choice, compiled=False))
        seams = [
            SeamUnit(name, journal, len(bands) + upper.index, upper, lower, scene.grid, products)
            for upper, lower in pairwise(bands)
            if lower.spans[0].rise
        ]
        if seams:
            found = settled(seams, (yield seams))
            counts |= {unit.index: data for unit, data in zip(seams, found, strict=True)}
        summed = total([counts[index] for index in sorted(counts)])
        tags = _tags(model, request, choice, summed, len(bands))
        last = []
        for product, path in rasters.items():
            parts: list[Part] = []
            for band in bands:
                if band.index and band.spans[0].rise:
                    seam = journal.file(len(bands) + band.index - 1, f"{product}.tif")
                    parts.append(Part(seam, band.spans[0].start))
                parts.append(Part(journal.file(band.index, f"{product}.tif"), band.start))
            last.append(Assemble(name, product, path, scene.grid, tags, tuple(parts)))
        settled(last, (yield last))
        journal.remove()
    seconds = time.perf_counter() - started
    return Summary(
        path=rasters["map"],
        **summed,
        bands=len(bands),
        resumed=resumed,
        seconds=seconds,
        mpx_per_second=sum(unit.megapixels for unit in left) / seconds,
        peak_memory=peak_memory(),
        choice=choice,
    )


def _tags(
    model: Segmenter, request: Mapping[str, Any], choice: Choice, counts: Mapping[str, Any], bands: int
) -> dict[str, str]:
    """Say in a map's metadata what it shows and where it comes from."""
    return {
        "segkit_type": model.task.type,
        "segkit_classes": json.dumps(model.task.legend),
        "segkit_version": version("segkit"),
        "segkit_date": datetime.now(UTC).isoformat(timespec="seconds"),
        "segkit_model": f"{'a model in memory' if model.path is None else model.path.name} {request['model']}",
        "segkit_tile": str(choice.tile),
        "segkit_overlap": str(choice.overlap),
        "segkit_precision": choice.precision,
        **({} if choice.agreement is None else {"segkit_agreement": f"{choice.agreement:.6f}"}),
        "segkit_request": json.dumps(request),
        "segkit_choice": json.dumps(asdict(choice)),
        "segkit_counts": json.dumps(counts),
        "segkit_bands": str(bands),
    }
