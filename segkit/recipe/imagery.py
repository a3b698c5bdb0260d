"""The keys of `data` that say how the pixels of scenes are read; a model reads new scenes in the same way."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, PrivateAttr, Tag, ValidationError, model_validator

from segkit.errors import DataError, UsageError, suggest
from segkit.io.layers import Layer
from segkit.io.paths import PathLike
from segkit.io.pixel_rules import Backscatter, PixelRules
from segkit.io.quality_mask import MASK_PRESETS, MaskRule, QualityMask
from segkit.io.scene import Scene
from segkit.recipe.base import Band, Positive, StrictModel, one_of
from segkit.recipe.derived import Index, LayerForm, check_names, replace_layers
from segkit.recipe.messages import readable_error

MaskPreset = Literal["sentinel2_scl", "landsat_qa_pixel", "planet_udm2", "fmask"]


class FromTable(StrictModel):
    """A column of the table of scenes."""

    column: str
    """Name of the column. A cell holds one number, or one for each band, separated by spaces."""


PerBand = Annotated[
    Annotated[float, Tag("<scalar>")]
    | Annotated[tuple[float, ...], Tag("<list>"), Field(min_length=1)]
    | Annotated[FromTable, Tag("<keys>")]
    | Annotated[None, Tag("<nothing>")],
    one_of("a number, a number for each band, or {column: NAME} of the table"),
]
NoDataValues = Annotated[
    Annotated[float, Tag("<scalar>")]
    | Annotated[tuple[float, ...], Tag("<list>"), Field(min_length=1)]
    | Annotated[None, Tag("<nothing>")],
    one_of("a number, or a list of numbers"),
]
Bands = Annotated[
    Annotated[Band, Tag("<text>")]
    | Annotated[Band, Tag("<scalar>")]
    | Annotated[tuple[Band, ...], Tag("<list>"), Field(min_length=1)],
    one_of("the name or the number of a band, or a list of these"),
]
Decibels = Annotated[
    Annotated[Backscatter, Tag("<text>")]
    | Annotated[tuple[Backscatter | None, ...], Tag("<list>"), Field(min_length=1)]
    | Annotated[None, Tag("<nothing>")],
    one_of("'power' or 'amplitude', or one of these (or null) for each band"),
]


class MaskKeys(StrictModel):
    """Quality bands: where they are, and which of their values mean that a pixel is not valid."""

    preset: MaskPreset | None = None
    """Known meaning: clouds, cloud shadows and defective pixels are not valid."""
    values: tuple[int, ...] = ()
    """In place of a preset: values that mean not valid."""
    bits: tuple[Annotated[int, Field(ge=0, le=31)], ...] = ()
    """In place of a preset: numbers of bits, from 0, that mean not valid if one of them is set."""
    band: Bands | None = None
    """Number or name of the quality band, or a list of them: in the scene, or in the file beside it. By default the
    first band of the file, or the band of the scene with the usual name (SCL, QA_PIXEL, ...)."""
    file: str | None = None
    """File beside the image, relative to its folder; {name} stands for the image's name without extension."""
    replace: Annotated[dict[str, str], Field(min_length=1)] | None = None
    """In place of `file`: {text: other text} of the file's name, which is otherwise that of the image."""
    per: Literal["file", "scene"] = "file"
    """Of a scene of several files, such as dates: whether each `file` has a mask that is named after it, or that of the
    first one is the mask of the whole `scene`. In both, a pixel is not valid if one mask says so."""

    @model_validator(mode="after")
    def _check_meaning(self) -> MaskKeys:
        if (self.preset is not None) == bool(self.values or self.bits):
            raise ValueError("give either preset, or values or bits")
        if self.file is not None and self.replace is not None:
            raise ValueError("file and replace both name the file of the mask; remove one of them")
        if self.per == "scene" and not self.in_file:
            raise ValueError("per is for masks in files of their own, and neither file nor replace is given; remove it")
        if self.preset is None and self.band is None and not self.in_file:
            raise ValueError("band is missing: which band of the scene is the mask; or give file")
        return self

    @property
    def in_file(self) -> bool:
        """Whether the quality bands are in a file of their own."""
        return self.file is not None or self.replace is not None

    def to_mask(self) -> QualityMask:
        """Return the mask that these keys describe."""
        rule = MaskRule(self.values, self.bits) if self.preset is None else MASK_PRESETS[self.preset]
        return QualityMask(
            rule, _as_list(self.band), self.file, tuple((self.replace or {}).items()), self.per == "file"
        )


Mask = Annotated[
    Annotated[MaskPreset, Tag("<text>")] | Annotated[MaskKeys, Tag("<keys>")] | Annotated[None, Tag("<nothing>")],
    one_of("the name of a preset, or keys (preset, values, bits, band, file, replace, per)"),
]


class Imagery(StrictModel):
    """How the pixels of scenes are read."""

    bands: Annotated[tuple[Band, ...], Field(min_length=1)] | None = None
    """Bands to use: numbers counted from 1 across all files of a scene, or names (red, B04); by default all except
    alpha and quality bands."""
    band_names: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)] | None = None
    """Names of all bands of a scene, in the order of its files, if the files do not name them. A band with the name of
    a spectral band (red, nir, ...) is imagery, even if it is tagged as alpha."""
    nodata: NoDataValues = None
    """Stored value, or list of them, that means no data in every band, besides what the files declare."""
    apply_scale_offset: bool = False
    """Whether to apply the scale and offset that files declare for their bands; else the stored values are used."""
    scale: PerBand = None
    """Factor of the stored values, if the files do not declare it: value = stored value * scale + offset. A number, one
    for each band, or {column: NAME} of the table of scenes."""
    offset: PerBand = None
    """Offset, as `scale`; for Sentinel-2 from processing baseline 04.00 on, -1000 gives the numbers of before."""
    decibels: Decibels = None
    """What the values are, if they are to be converted to decibels: radar `power` or `amplitude`; or a list with one of
    these, or null, for each band. By default they are not converted."""
    mask: Mask = None
    """Quality bands, by which clouds and other pixels are not valid: the name of a preset, if its band is in the scene
    under its usual name, or keys of `MaskKeys`."""
    resample: bool = False
    """Whether to warp files on another grid to that of the scene's first file (labels by nearest neighbour)."""
    resolution: Positive | None = None
    """Pixel size in which products (SAFE, STAC) are read, in units of their CRS; by default that of the finest band."""
    resampling: Literal["nearest", "bilinear", "average"] = "bilinear"
    """How bands of products with another resolution are resampled."""
    _units_are_for_scenes: bool = PrivateAttr(default=False)

    indices: tuple[Index, ...] = ()
    """Bands that are computed from bands of the images, also from others than `bands`: names of spectral indices
    (NDVI), formulas of bands (nir / red), or keys of `IndexKeys`."""
    layers: dict[str, LayerForm] = Field(default_factory=dict)
    """{name: path or keys of `LayerKeys`} of other rasters that cover the scenes, on any grid, such as elevation."""

    @property
    def quality_mask(self) -> QualityMask | None:
        """Where the quality bands of a scene are, and what they mean; None without `mask`."""
        keys = _as_keys(self.mask)
        return None if keys is None else keys.to_mask()

    @property
    def covering_layers(self) -> list[Layer]:
        """The layers as the reader of scenes needs them."""
        return [layer.to_layer(name) for name, layer in self.layers.items()]

    @model_validator(mode="after")
    def _check_units(self) -> Imagery:
        if self.apply_scale_offset and not (self.scale is None and self.offset is None):
            raise ValueError(
                "apply_scale_offset takes scale and offset from the files, so scale and offset cannot be given, too; "
                "remove one of them"
            )
        if 0 in _as_list(self.scale):
            raise ValueError("a scale of 0 makes all values equal; correct it")
        return self

    @model_validator(mode="after")
    def _check_names(self) -> Imagery:
        check_names(self.indices, self.layers)
        return self


T = TypeVar("T", bound=Imagery)


def change_imagery(imagery: T, changes: Mapping[str, Any]) -> T:
    """Return keys of a recipe with those that a user gives for other scenes; a scale or offset replaces the declared.

    Parameters
    ----------
    changes
        {key: value}; None changes nothing. Of a mask, only the keys that change: `file` and `preset`; of layers, {name:
        path}.

    Raises
    ------
    UsageError
        A value is not valid, the meaning of a mask is not known, or there is no such layer.
    """
    given = {key: value for key, value in changes.items() if value is not None}
    if not given:
        return imagery
    if "mask" in given:
        given["mask"] = _change_mask(imagery.mask, **given["mask"])
    if "layers" in given:
        given["layers"] = replace_layers(imagery.layers, given["layers"])
    if {"scale", "offset"} & given.keys():
        given["apply_scale_offset"] = False
    try:
        changed = Imagery.model_validate({key: getattr(imagery, key) for key in Imagery.model_fields} | given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = tuple(part for part in first["loc"] if not str(part).startswith("<"))
        raise UsageError(readable_error(first, place, Imagery.model_json_schema())) from error
    copy = imagery.model_copy(update={key: getattr(changed, key) for key in given})
    copy._units_are_for_scenes = bool({"scale", "offset"} & given.keys())
    return copy


def _as_keys(mask: MaskKeys | MaskPreset | None) -> MaskKeys | None:
    return MaskKeys(preset=mask) if isinstance(mask, str) else mask


def _change_mask(
    mask: MaskKeys | MaskPreset | None, file: str | None = None, preset: str | None = None
) -> dict[str, Any]:
    """Return the keys of a mask with another file or meaning.

    Raises
    ------
    UsageError
        Nothing says what its values mean.
    """
    old = _as_keys(mask)
    if old is None and preset is None:
        raise UsageError(
            f"{file}: nothing says which values of this mask mean not valid: the model was trained without data.mask"
            + suggest("add --mask-preset")
        )
    keys: dict[str, Any] = {} if old is None else old.model_dump(exclude_defaults=True)
    if preset is not None and preset != keys.get("preset"):
        keys = {key: value for key, value in keys.items() if key in ("file", "replace")} | {"preset": preset}
    if file is not None:
        was_in_file = old is not None and old.in_file
        keys = {key: value for key, value in keys.items() if key != "replace" and (key != "band" or was_in_file)}
        keys["file"] = file
    return keys


def open_scene(
    paths: PathLike | Sequence[PathLike],
    imagery: Imagery,
    *,
    row: Mapping[str, str] = MappingProxyType({}),
    trained: Sequence[str] | None = None,
    vrt: bool | None = False,
    name: str | None = None,
) -> Scene:
    """Open a scene as a recipe says.

    Parameters
    ----------
    row
        The other columns of the scene's row in the table of scenes, if there is one.
    paths, trained, vrt, name
        As for `Scene.from_files`.

    Raises
    ------
    SegkitError
        See `Scene.from_files` and `pixel_rules`.
    """
    first = paths if isinstance(paths, (str, Path)) or not isinstance(paths, Sequence) else paths[0]
    return Scene.from_files(
        paths,
        bands=imagery.bands,
        band_names=imagery.band_names,
        trained=trained,
        resample=imagery.resample,
        vrt=vrt,
        scaled=imagery.apply_scale_offset,
        rules=pixel_rules(imagery, row, str(first)),
        mask=imagery.quality_mask,
        indices=[index.to_formula() for index in imagery.indices],
        layers=imagery.covering_layers,
        name=name,
        resolution=imagery.resolution,
        resampling=imagery.resampling,
    )


def pixel_rules(imagery: Imagery, row: Mapping[str, str], scene: str) -> PixelRules:
    """Return the units and no data of a scene.

    Raises
    ------
    DataError
        They are in a column of the table, and the scene (named in messages) has no such cell, or no number in it.
    """
    return PixelRules(
        scale=_numbers("scale", imagery.scale, row, scene),
        offset=_numbers("offset", imagery.offset, row, scene),
        decibels=_as_list(imagery.decibels),
        nodata=_as_list(imagery.nodata),
        for_these_scenes=imagery._units_are_for_scenes,
    )


def _numbers(key: Literal["scale", "offset"], given: Any, row: Mapping[str, str], scene: str) -> tuple[float, ...]:
    if not isinstance(given, FromTable):
        return _as_list(given)
    if given.column not in row:
        raise DataError(
            f"{scene}: its {key} is to be read from the column {given.column!r} of a table of scenes, which is missing"
            + suggest(f"give it (--{key})", "add the column to data.train.table", f"set data.{key} to numbers")
        )
    try:
        numbers = tuple(float(part) for part in re.split(r"[\s;]+", row[given.column].strip()))
    except ValueError:
        numbers = ()
    if not numbers or not all(math.isfinite(number) for number in numbers) or (key == "scale" and 0 in numbers):
        raise DataError(
            f"{scene}: the column {given.column!r} of the table holds {row[given.column]!r}; data.{key} needs a number "
            f"{'other than 0 ' if key == 'scale' else ''}there, or one for each band, separated by spaces"
        )
    return numbers


def _as_list(value: Any) -> tuple[Any, ...]:
    """Return a value, a list of values or nothing as a tuple; a column of a table as an empty one."""
    if value is None or isinstance(value, FromTable):
        return ()
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)
