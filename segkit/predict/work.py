"""Work: one scene from its files to its maps, band by band, with a journal between."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segkit.predict.band import finish_seam, predict_band
from segkit.predict.choice import Choice, Options, choose, windows_at_once
from segkit.predict.device import pick_device
from segkit.predict.journal import Journal
from segkit.predict.network import NotCompiled, Runner, TileTooLarge, return_memory
from segkit.predict.plan import Tiling
from segkit.predict.products import PRODUCTS
from segkit.predict.region import PolygonRegion, Region
from segkit.predict.summary import Summary, peak_memory, total
from segkit.progress import progress
from segkit.raster import Part, Scene, assemble

if TYPE_CHECKING:
    from geopandas import GeoSeries

    from segkit.model import Segmenter


def predict_scene(
    model: Segmenter,
    scene: Scene,
    rasters: Mapping[str, Path],
    options: Options,
    request: Mapping[str, Any],
    *,
    polygons: GeoSeries | None = None,
    overwrite: bool = False,
    show_progress: bool = False,
) -> Summary:
    """Map one scene; what an earlier call with the same request has finished is taken over.

    Parameters
    ----------
    rasters
        Where each product goes (keys of `PRODUCTS`); the journal lies beside the map.
    options
        How to predict.
    request
        Everything that decides the pixels, as `Journal.open` compares it.
    polygons
        The area of interest.

    Raises
    ------
    OutputExistsError
        Unfinished work of another request is there, and `overwrite` is false.
    SegkitError
        The scene is damaged, or its map cannot be written.
    """
    started = time.perf_counter()
    region = None if polygons is None else PolygonRegion(polygons, scene.grid)
    with Journal.open(rasters["map"], request, overwrite=overwrite) as journal:
        choice = Choice(**journal.plan) if journal.plan else choose(model, scene, options, region)
        while True:
            journal.settle(asdict(choice))
            work = _Work(model, scene, options, choice, journal, tuple(rasters), region)
            try:
                done = work.run(show_progress=show_progress)
                break
            except TileTooLarge as error:
                smaller = choice.smaller()
                if smaller is None:
                    raise
                warnings.warn(f"{error}; going on with {smaller.tile}", stacklevel=2)
                choice = smaller
            except NotCompiled as error:
                warnings.warn(f"{error} ({error.__cause__}); going on without", stacklevel=2)
                choice = replace(choice, compiled=False)
        counts = total(done.counts)
        tags = _tags(model, request, choice, counts, len(work.tiling.bands))
        for name, path in rasters.items():
            assemble(path, scene.grid, PRODUCTS[name].format(model.task, tags), work.parts(name), overwrite=True)
        journal.remove()
    seconds = time.perf_counter() - started
    return Summary(
        path=rasters["map"],
        **counts,
        bands=len(work.tiling.bands),
        resumed=done.resumed,
        seconds=seconds,
        mpx_per_second=done.megapixels / seconds,
        peak_memory=peak_memory(),
        choice=choice,
    )


@dataclass(frozen=True)
class _Done:
    """What `_Work.run` did: the counts of all bands and seams, and what of it was new."""

    counts: Sequence[Mapping[str, Any]]
    resumed: int
    megapixels: float


class _Work:
    """The bands of one scene, and the seams between them, as units of a journal: first all bands, then the seams."""

    def __init__(
        self,
        model: Segmenter,
        scene: Scene,
        options: Options,
        choice: Choice,
        journal: Journal,
        products: tuple[str, ...],
        region: Region | None,
    ) -> None:
        self.tiling: Tiling = choice.tiling(scene.grid, model.stride)
        self._model, self._scene, self._options, self._choice = model, scene, options, choice
        self._journal, self._products, self._region = journal, products, region

    def run(self, *, show_progress: bool) -> _Done:
        """Do what is not done yet."""
        bands, width = self.tiling.bands, self._scene.grid.width
        found = {band.index: self._journal.finished(band.index) for band in bands}
        counts = {index: record for index, record in found.items() if record is not None}
        left = [band for band in bands if band.index not in counts]
        megapixels = sum(band.stop - band.spans[0].start for band in left) * width / 1e6
        if left:
            if counts and show_progress:
                print(
                    f"{self._scene.name}: going on, {len(counts)} of {len(bands)} bands are finished", file=sys.stderr
                )
            device, choice = pick_device(self._options.device), self._choice
            tta = choice.tta is not None
            runner = Runner(self._model, device, choice.precision, tta=tta, compiled=choice.compiled)
            return_memory()
            batch = self._options.batch or windows_at_once(self._model, choice, self.tiling, device)
            with progress(self._scene.name, megapixels, "Mpx", show=show_progress) as advance:
                for band in left:
                    with self._journal.writing(band.index) as unit:
                        unit.data = predict_band(
                            runner,
                            self._scene,
                            self.tiling,
                            band,
                            unit.folder,
                            self._products,
                            batch=batch,
                            region=self._region,
                            advance=advance,
                        )
                    counts[band.index] = unit.data
        for upper, lower in pairwise(bands):
            index, rows = self._seam(upper.index), lower.spans[0].rise
            if rows and (record := self._journal.finished(index)) is not None:
                counts[index] = record
            elif rows:
                with self._journal.writing(index) as unit:
                    unit.data = finish_seam(
                        self._journal.file(upper.index, "bottom.tif"),
                        self._journal.file(lower.index, "top.tif"),
                        self._model.task,
                        self._scene.grid,
                        lower.spans[0].start,
                        rows,
                        unit.folder,
                        self._products,
                    )
                counts[index] = unit.data
        return _Done([counts[index] for index in sorted(counts)], len(bands) - len(left), megapixels)

    def parts(self, product: str) -> list[Part]:
        """Return the files that make up a product, from the top."""
        name, parts = f"{product}.tif", []
        for band in self.tiling.bands:
            if band.index and band.spans[0].rise:
                seam = self._journal.file(self._seam(band.index - 1), name)
                parts.append(Part(seam, band.spans[0].start))
            parts.append(Part(self._journal.file(band.index, name), band.start))
        return parts

    def _seam(self, upper: int) -> int:
        return len(self.tiling.bands) + upper


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
