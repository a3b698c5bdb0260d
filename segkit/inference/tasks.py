"""Units: what a scene's work is made of, each to be worked by itself, here or elsewhere.

A unit is a small frozen object, which may be pickled, and is called with the tools of the process that works it: the
model, its prepared network, the area of interest. What it makes, it leaves in files; what it returns is small.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from segkit.errors import DataError, ModelFileError
from segkit.inference.bands import finish_seam, predict_band
from segkit.inference.device import pick_device, pick_precision
from segkit.inference.journal import Journal
from segkit.inference.outputs import PRODUCTS
from segkit.inference.runner import Runner
from segkit.inference.settings import Choice, Measured, Options, choose, windows_at_once
from segkit.inference.tiling import Axis, Band, Tiling
from segkit.io.cog import Part, assemble
from segkit.io.grid import Grid
from segkit.io.region import PolygonRegion, identity, read_area
from segkit.io.scene import Scene
from segkit.runtime.memory import return_memory

if TYPE_CHECKING:
    from segkit.io.polygons import Polygons
    from segkit.models.segmenter import Segmenter

Advance = Callable[[float], None]


class Tools:
    """What units are worked with in this process.

    Parameters
    ----------
    polygons
        The area of interest.
    show_progress
        Whether the process has a user who watches it.
    """

    def __init__(self, model: Segmenter, polygons: Polygons | None = None, *, show_progress: bool = False) -> None:
        self.model, self.show_progress = model, show_progress
        self.sharing = 1  # processes that predict on this machine
        self.measured: Measured = {}
        self._polygons = polygons
        self._region: tuple[Grid, PolygonRegion] | None = None
        self._runner: tuple[object, Runner] | None = None

    def region(self, grid: Grid) -> PolygonRegion | None:
        """Return the area of interest on a grid; that of the last grid is kept."""
        if self._polygons is None:
            return None
        if self._region is None or self._region[0] != grid:
            self._region = grid, PolygonRegion(self._polygons, grid)
        return self._region[1]

    def runner(self, device: torch.device, choice: Choice, scene: object) -> Runner:
        """Return the prepared network; the last one is kept."""
        # Torch compiles only so many sizes of windows for one network.
        key = device, choice.precision, choice.tta, scene if choice.compiled else None
        if self._runner is None or self._runner[0] != key:
            self._runner = None  # frees its memory first
            made = Runner(self.model, device, choice.precision, tta=choice.tta is not None, compiled=choice.compiled)
            self._runner = key, made
            return_memory()  # copies of the network leave holes all over
        return self._runner[1]


@dataclass(frozen=True)
class Source:
    """Where other processes get their tools, and what tells model and area apart from others at these paths."""

    model: Path
    fingerprint: str
    area: Path | None = None
    layer: str | None = None
    polygons: str | None = None

    def tools(self) -> Tools:
        """Read model and area.

        Raises
        ------
        SegkitError
            One of them is not there, or is another one.
        """
        from segkit.models.segmenter import load

        model = load(self.model)
        if model.fingerprint() != self.fingerprint:
            raise ModelFileError(
                f"{self.model}: is another model than the one that was asked for; every machine must see the same file "
                "there, as long as the work goes on"
            )
        polygons = None if self.area is None else read_area(self.area, self.layer)
        if polygons is not None and identity(polygons) != self.polygons:
            raise DataError(
                f"{self.area}: holds other polygons than when it was asked for; every machine must see the same file "
                "there, as long as the work goes on"
            )
        return Tools(model, polygons)


_kept: tuple[Source, Tools] | None = None
_at_work = threading.Lock()


def elsewhere(unit: Unit, source: Source, sharing: int) -> Any:
    """Work a unit in a process that works for another one: one at a time; its tools are kept for the next."""
    global _kept
    with _at_work:
        if _kept is None or _kept[0] != source:
            _kept = None  # frees its memory first
            _kept = source, source.tools()
        _kept[1].sharing = sharing
        return unit(_kept[1], lambda step: None)


@dataclass(frozen=True)
class Unit:
    """A piece of work; `name` is the scene's, `told` says which piece it is, `megapixels` how much the network does."""

    name: str

    @property
    def told(self) -> str:
        """What it is, for users."""
        return type(self).__name__.lower()

    @property
    def megapixels(self) -> float:
        """Millions of pixels that go through the network."""
        return 0.0

    def __call__(self, tools: Tools, advance: Advance) -> Any:
        """Work it; `advance` is called with the millions of pixels of each step."""
        raise NotImplementedError


@dataclass(frozen=True)
class Check(Unit):
    """Refuse what cannot be done with the model there; returns the options with the device settled."""

    options: Options

    def __call__(self, tools: Tools, advance: Advance) -> Options:
        """See `Options.check`."""
        self.options.check(tools.model)
        return replace(self.options, device=str(pick_device(self.options.device)))


@dataclass(frozen=True)
class Look(Unit):
    """Open a scene and choose how to predict it, as far as `plan` has not settled it."""

    files: tuple[Path, ...]
    vrt: bool
    options: Options
    plan: Mapping[str, Any] | None

    def __call__(self, tools: Tools, advance: Advance) -> tuple[Scene, Choice]:
        """Return both."""
        scene = tools.model.scene(self.files, vrt=self.vrt)
        region, device = tools.region(scene.grid), pick_device(self.options.device)
        choice = (
            Choice(**self.plan)
            if self.plan
            else choose(tools.model, scene, self.options, region, sharing=tools.sharing, measured=tools.measured)
        )
        if choice.batch is None:
            tiling = choice.tiling(scene.grid, tools.model.stride)
            choice = replace(choice, batch=windows_at_once(tools.model, choice, tiling, device))
        if choice.threads is None and device.type == "cpu":
            choice = replace(choice, threads=torch.get_num_threads())
        return scene, choice


@dataclass(frozen=True)
class Find(Unit):
    """Look for what of a scene is finished; returns the data of finished units by index."""

    journal: Journal
    indexes: tuple[int, ...]

    def __call__(self, tools: Tools, advance: Advance) -> dict[int, dict[str, Any]]:
        """Compare their checksums."""
        found = {index: self.journal.finished(index) for index in self.indexes}
        return {index: data for index, data in found.items() if data is not None}


@dataclass(frozen=True)
class BandUnit(Unit):
    """Predict a band into the journal; one that is there already is left as it is."""

    scene: Scene
    options: Options
    choice: Choice
    journal: Journal
    tiling: Tiling
    band: Band
    products: tuple[str, ...]

    @classmethod
    def of(
        cls,
        scene: Scene,
        options: Options,
        choice: Choice,
        journal: Journal,
        tiling: Tiling,
        band: Band,
        products: tuple[str, ...],
    ) -> BandUnit:
        """Make the unit of one band of a tiling, of which it keeps what the band needs."""
        own = Tiling(Axis(tiling.rows.length, tiling.rows.ramp, band.spans), tiling.columns)
        return cls(scene.name, scene, options, choice, journal, own, band, products)

    @property
    def told(self) -> str:
        """The band and its rows."""
        return f"band {self.band.index}, rows {self.band.spans[0].start} to {self.band.spans[-1].stop - 1}"

    @property
    def megapixels(self) -> float:
        """Millions of pixels of the band."""
        return (self.band.stop - self.band.spans[0].start) * self.scene.grid.width / 1e6

    def __call__(self, tools: Tools, advance: Advance) -> dict[str, Any]:
        """Return the band's counts."""
        if (found := self.journal.finished(self.band.index)) is not None:
            return found
        device = pick_device(self.options.device)
        if self.choice.precision == "bf16":
            pick_precision("bf16", device)  # another machine than the one that chose it may not have it
        assert self.choice.batch is not None
        with _threads(self.choice.threads), self.journal.writing(self.band.index) as unit:
            unit.data = predict_band(
                tools.runner(device, self.choice, self.scene),
                self.scene,
                self.tiling,
                self.band,
                unit.folder,
                self.products,
                batch=self.options.batch or self.choice.batch,
                region=tools.region(self.scene.grid),
                advance=advance,
            )
        return unit.data


@dataclass(frozen=True)
class SeamUnit(Unit):
    """Decide the rows that two finished bands share; a seam that is there already is left as it is."""

    journal: Journal
    index: int
    upper: Band
    lower: Band
    grid: Grid
    products: tuple[str, ...]

    @property
    def told(self) -> str:
        """The bands."""
        return f"the seam of bands {self.upper.index} and {self.lower.index}"

    def __call__(self, tools: Tools, advance: Advance) -> dict[str, Any]:
        """Return the seam's counts."""
        if (found := self.journal.finished(self.index)) is not None:
            return found
        first = self.lower.spans[0]
        with self.journal.writing(self.index) as unit:
            unit.data = finish_seam(
                self.journal.file(self.upper.index, "bottom.tif"),
                self.journal.file(self.lower.index, "top.tif"),
                tools.model.task,
                self.grid,
                first.start,
                first.rise,
                unit.folder,
                self.products,
            )
        return unit.data


@dataclass(frozen=True)
class Assemble(Unit):
    """Make one product of all its parts."""

    product: str
    path: Path
    grid: Grid
    tags: Mapping[str, str]
    parts: tuple[Part, ...]

    def __call__(self, tools: Tools, advance: Advance) -> None:
        """Write the file."""
        formatted = PRODUCTS[self.product].format(tools.model.task, self.tags)
        assemble(self.path, self.grid, formatted, self.parts, overwrite=True)


@dataclass(frozen=True)
class Vectorize(Unit):
    """Make the polygons of a finished map; those that were made of it before stay."""

    map: Path
    vector: Path
    probabilities: Path | None
    overwrite: bool

    def __call__(self, tools: Tools, advance: Advance) -> None:
        """Write the file."""
        from segkit.vector import vectorize

        if self.overwrite or not self.vector.exists() or self.vector.stat().st_mtime < self.map.stat().st_mtime:
            vectorize(
                self.map,
                self.vector,
                probabilities=self.probabilities,
                overwrite=self.overwrite,
                show_progress=tools.show_progress,
            )


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Let torch compute with so many threads while the block lasts."""
    before = torch.get_num_threads()
    if number is None or number == before:
        yield
        return
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
