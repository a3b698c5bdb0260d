"""Keys of bands that are no bands of the images: spectral indices and other formulas, and layers such as a DEM."""

from __future__ import annotations

import difflib
import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, Tag

from segkit.errors import UsageError
from segkit.io.derived_bands import BandFormula
from segkit.io.formula import parse_formula
from segkit.io.layers import Layer
from segkit.io.remote import as_path, is_remote
from segkit.recipe.base import Band, StrictModel, one_of
from segkit.recipe.mosaic_source import MosaicSource
from segkit.recipe.sources import Raster

# Names in the formulas of spyndex that are bands, but not in its table of bands: polarisations of radar.
_POLARISATIONS = ("VV", "VH", "HV", "HH")
_KERNEL = "k"  # the names of kernels start with it: kNR is the kernel of N and R


class IndexKeys(StrictModel):
    """A band that is computed from bands of the images: a spectral index, or a formula."""

    index: str | None = None
    """Name of a spectral index in the list of spyndex; a stored recipe has its formula instead."""
    formula: str | None = None
    """In place of an index: names of bands and constants, numbers, + - * / ** and parentheses."""
    name: Annotated[str, Field(min_length=1)] | None = None
    """Name of the band; by default that of the index, or the formula."""
    bands: dict[str, Band] = Field(default_factory=dict)
    """{name in the formula: name or number of the band}; by default a name in the formula is that of a band, and those
    of spyndex are the common names (N: nir)."""
    constants: dict[str, float] = Field(default_factory=dict)
    """{name in the formula: value}; by default those of spyndex."""

    def to_formula(self) -> BandFormula:
        """Return what the reader of scenes needs."""
        assert self.name is not None
        assert self.formula is not None
        return BandFormula(self.name, self.formula, tuple(self.bands.items()), tuple(self.constants.items()))


def _complete_index(given: str | IndexKeys) -> IndexKeys:
    """Return an index with its formula, and with all names in the formula as bands or constants."""
    if isinstance(given, str):
        given = IndexKeys(index=given) if given.isidentifier() else IndexKeys(formula=given)
    if (given.index is None) == (given.formula is None):
        raise ValueError("give either index or formula")
    bands: dict[str, str | int]
    constants: dict[str, float]
    if given.index is not None:
        text, bands, constants = _look_up(given.index, given)
    else:
        assert given.formula is not None
        text, constants = given.formula.strip(), {}
        bands = {name: name for name in parse_formula(text).names if name not in given.constants}
    names = parse_formula(text).names
    unknown = [name for name in (*given.bands, *given.constants) if name not in names]
    if unknown or (twice := [name for name in given.bands if name in given.constants]):
        what = f"{unknown[0]} is given" if unknown else f"{twice[0]} is both a band and a constant"
        raise ValueError(f"{what}, but the formula is {text}; correct bands and constants")
    constants = {name: value for name, value in constants.items() if name not in given.bands}
    bands = {name: band for name, band in bands.items() if name not in given.constants}
    name = given.name or given.index or (text if text.startswith("(") else f"({text})")
    if ":" in name:
        raise ValueError(f"the name {name!r} contains a colon; give another name")
    return IndexKeys(name=name, formula=text, bands=bands | given.bands, constants=constants | given.constants)


def _look_up(name: str, given: IndexKeys) -> tuple[str, dict[str, str | int], dict[str, float]]:
    """Return the formula of an index, and the bands and constants in it.

    Raises
    ------
    ValueError
        There is no such index, it uses kernels, or it has a constant without a usual value that is not given.
    """
    import spyndex

    if name not in spyndex.indices:
        known = {each.casefold(): each for each in spyndex.indices}
        near = [known[each] for each in difflib.get_close_matches(name.casefold(), known, n=3)]
        hint = (
            f"did you mean {' or '.join(near)}?" if near else "https://github.com/awesome-spectral-indices has a list"
        )
        raise ValueError(f"spyndex knows no index {name!r}; {hint}")
    text = str(spyndex.indices[name].formula)
    bands: dict[str, str | int] = {}
    constants: dict[str, float] = {}
    for variable in parse_formula(text).names:
        if variable in spyndex.bands:
            bands[variable] = str(spyndex.bands[variable].common_name)
        elif variable in _POLARISATIONS:
            bands[variable] = variable
        elif variable not in spyndex.constants:
            what = "a kernel of bands" if variable.startswith(_KERNEL) else "not known"
            if variable not in given.bands and variable not in given.constants:
                raise ValueError(
                    f"{name} is {text}, and {variable} is {what}, which segkit does not compute; remove it"
                )
        elif spyndex.constants[variable].default is not None:
            constants[variable] = float(spyndex.constants[variable].default)
        elif variable not in given.constants:
            meaning = spyndex.constants[variable].description
            raise ValueError(f"{name} needs {variable} ({meaning}), which has no usual value; add it to constants")
    return text, bands, constants


if TYPE_CHECKING:
    Index = IndexKeys  # what every form becomes
else:
    Index = Annotated[
        Annotated[str, Tag("<text>")] | Annotated[IndexKeys, Tag("<keys>")],
        one_of("the name of an index, a formula, or keys (index, formula, name, bands, constants)"),
        AfterValidator(_complete_index),
    ]


class LayerKeys(StrictModel):
    """A raster that covers the scenes, on any grid."""

    path: Raster
    """The raster, or a mosaic of rasters."""
    bands: tuple[Band, ...] = ()
    """Names or numbers of its bands; by default all except alpha bands."""
    resampling: Literal["nearest", "bilinear", "cubic", "average"] = "bilinear"
    """How it is put on the grid of a scene."""
    nodata: float | None = None
    """Stored value that means no data, besides what the file declares."""

    def to_layer(self, name: str) -> Layer:
        """Return what the reader of scenes needs."""
        path = self.path.to_path() if isinstance(self.path, MosaicSource) else as_path(self.path)
        nodata = () if self.nodata is None else (self.nodata,)
        return Layer(name, path, self.bands, self.resampling, nodata)


if TYPE_CHECKING:
    LayerForm = LayerKeys
else:
    LayerForm = Annotated[
        Annotated[str, Tag("<text>")] | Annotated[LayerKeys, Tag("<keys>")],
        one_of("a path, or keys (path, bands, resampling, nodata)"),
        AfterValidator(lambda given: LayerKeys(path=given) if isinstance(given, str) else given),
    ]


def check_names(indices: Sequence[IndexKeys], layers: Mapping[str, LayerKeys]) -> None:
    """Raise a ValueError if two bands have the same name, or a layer cannot have its name."""
    for name in layers:
        if not name or {*name} & {*":=."}:
            raise ValueError(f"layers has the name {name!r}; a name has no colon, point or equals sign")
    names = [str(one.name) for one in indices] + list(layers)
    if twice := next((name for place, name in enumerate(names) if name in names[:place]), None):
        raise ValueError(f"indices and layers have {twice!r} twice; give each its own name")


def replace_layers(layers: Mapping[str, LayerKeys], paths: Mapping[str, str]) -> dict[str, Any]:
    """Return layers with the files that a user gives for other scenes; a folder or a pattern is a mosaic.

    Raises
    ------
    UsageError
        There is no layer of that name.
    """
    changed: dict[str, Any] = dict(layers)
    for name, path in paths.items():
        if name not in layers:
            known = f"its layers are {', '.join(layers)}" if layers else "it has none"
            raise UsageError(f"the model was trained without a layer {name!r}; {known}")
        old = layers[name].path
        overlap = old.overlap if isinstance(old, MosaicSource) else None
        new = MosaicSource(mosaic=path, overlap=overlap) if _stands_for_several(path) else path
        changed[name] = layers[name].model_copy(update={"path": new})
    return changed


def _stands_for_several(path: str) -> bool:
    """Whether a path is a folder, or a pattern."""
    return not is_remote(path) and (Path(path).is_dir() or (glob.has_magic(path) and not Path(path).exists()))


def describe_layers(layers: Mapping[str, LayerKeys]) -> dict[str, Any]:
    """Return how layers are read, without their files, which may differ from place to place."""
    return {name: layer.model_dump(exclude={"path"}) for name, layer in layers.items()}
