"""Items and item collections of STAC, as files: in which assets bands are, and what their values mean.

https://github.com/radiantearth/stac-spec: versions 1.0 with the extensions eo and raster (`eo:bands`, `raster:bands`),
and 1.1 (`bands`).
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

from segkit.errors import DataError, RasterError
from segkit.io.band_names import SENTINEL_2, normalize_name
from segkit.io.paths import is_there
from segkit.io.product_band import BandFile, ProductBand
from segkit.io.raster import open_raster, read_grid
from segkit.io.remote import as_path, is_remote
from segkit.io.safe import OFFSET_BASELINE
from segkit.io.stac import BAND_KEYS, COMMON_NAME_KEYS

_MAX_BYTES = 10**8
_RASTER_TYPES = ("image/tiff", "image/vnd.stac.geotiff", "image/jp2", "image/x.geotiff")
_RASTER_SUFFIXES = (".tif", ".tiff", ".jp2", ".img", ".dat")
# Assets that are made to be looked at, whatever bands they are made of.
_PICTURE_ROLES = {"thumbnail", "overview", "visual"}
_PICTURE_KEYS = {"thumbnail", "preview", "rendered_preview", "overview", "visual", "tci", "true_color"}
_NOT_FINITE = ("nan", "NaN", "inf", "-inf")
_APPLIED_KEYS = ("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied")
_BASELINE_KEYS = ("s2:processing_baseline", "sentinel:processing_baseline", "processing:version")
# Names of bands of Sentinel-2 that tell more than the common name, which is "rededge" for four of them.
_TELLING = re.compile(r"B\d\d?A?|rededge\d", re.IGNORECASE)
# Of Level-1C and Level-2A from processing baseline 04.00 on (ESA, "Sentinel-2 Products Specification Document").
_S2_OFFSET, _S2_SCALE = -1000.0, 1e-4


class _Values(NamedTuple):
    """What an item declares about the values of a band; None: nothing."""

    scale: float | None
    offset: float | None
    nodata: float | None


class _Sentinel2(NamedTuple):
    """What an item of Sentinel-2 says about the offset of its stored values.

    The catalogue that applies the offset does so in the GeoTIFFs that it makes, not in ESA's JPEG 2000 files.
    """

    is_applied: bool
    baseline: float | None

    def shift(self, file: Path, values: _Values) -> float | None:
        """Return what is to be added to stored values to get those of early products; None if that is not known."""
        if self.is_applied and file.suffix.casefold() != ".jp2":
            return 0.0
        if values.offset is not None:
            return values.offset / (values.scale or _S2_SCALE)
        return None if self.baseline is None else _S2_OFFSET if self.baseline >= OFFSET_BASELINE else 0.0


def read_items(path: Path) -> dict[str, Mapping[str, Any]]:
    """Return the items in a file by their names, which can be names of files; empty for a catalogue or collection.

    Raises
    ------
    DataError
        It is no JSON file, or holds anything else, or two items of the same name.
    """
    facts = path.stat()
    return _read_items(path, facts.st_mtime_ns, facts.st_size)


@functools.lru_cache(maxsize=8)
def _read_items(path: Path, _changed: int, size: int) -> dict[str, Mapping[str, Any]]:
    try:
        if size > _MAX_BYTES:
            raise ValueError(f"is larger than {_MAX_BYTES // 10**6} MB")
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as a STAC item ({error}); copy it again") from error
    kind = content.get("type") if isinstance(content, dict) else None
    if kind in ("Catalog", "Collection"):
        return {}
    features = content.get("features") if kind == "FeatureCollection" else [content]
    if not isinstance(features, list) or not features or not all(map(_is_item, features)):
        raise DataError(f"{path}: is no STAC item and no collection of items, which have assets; give another file")
    names = [_file_name(item["id"]) if isinstance(item.get("id"), str) else path.stem for item in features]
    twice, number = Counter(names).most_common(1)[0]
    if number > 1:
        raise DataError(f"{path}: has {number} items with the id {twice!r}, by which scenes are called; rename one")
    return dict(zip(names, features, strict=True))


def _is_item(value: Any) -> bool:
    return isinstance(value, dict) and value.get("type") == "Feature" and isinstance(value.get("assets"), dict)


def _file_name(text: str) -> str:
    """Return an id as it can be in the name of a file, so that an item cannot say where a map is written."""
    return re.sub(r"[^\w.()+@ -]", "_", text).strip(". ") or "item"


def read_bands(path: Path, item: Mapping[str, Any]) -> tuple[ProductBand, ...]:
    """Return the bands of an item, in the order of its assets; why an asset cannot be read is in its `BandFile`.

    Raises
    ------
    DataError
        It has no assets that are rasters, or declares a scale, offset or no-data value that is not valid.
    """
    sensor = _find_sentinel_2(item)
    found = [
        band
        for key, asset in item["assets"].items()
        if isinstance(asset, dict) and _is_raster(key, asset)
        for band in _asset_bands(path, key, asset, sensor)
    ]
    if not found:
        raise DataError(f"{path}: the item {item.get('id')!r} has no asset that is a raster; give another one")
    if any(band.common is not None for band in found):
        found = [replace(band, is_imagery=band.common is not None) for band in found]
    return tuple(_name_distinctly(found))


def _find_sentinel_2(item: Mapping[str, Any]) -> _Sentinel2 | None:
    """Return what an item of Sentinel-2 says about its offset; None if it is not of Sentinel-2."""
    properties = item.get("properties")
    if not isinstance(properties, dict):
        return None
    sensors = [str(properties.get(key)).casefold() for key in ("constellation", "platform")]
    if not any(sensor.startswith("sentinel-2") for sensor in sensors):
        return None
    texts = [str(properties[key]) for key in _BASELINE_KEYS if key in properties]
    texts += re.findall(r"_N(\d{4})_", f"{properties.get('s2:product_uri')} {item.get('id')}")
    found = (re.fullmatch(r"N?(\d\d)\.?(\d\d)", text) for text in texts)
    baseline = next((float(f"{each[1]}.{each[2]}") for each in found if each), None)
    return _Sentinel2(any(properties.get(key) is True for key in _APPLIED_KEYS), baseline)


def _is_raster(key: str, asset: Mapping[str, Any]) -> bool:
    """Return whether an asset is a raster that is no picture to be looked at."""
    if _plain_key(key).casefold() in _PICTURE_KEYS or _PICTURE_ROLES & _roles(asset):
        return False
    href, kind = str(asset.get("href", "")), str(asset.get("type", "")).casefold()
    suffix = PurePosixPath(re.split(r"[?#]", href)[0]).suffix.casefold()
    return kind.startswith(_RASTER_TYPES) or (not kind and suffix in _RASTER_SUFFIXES)


def _roles(asset: Mapping[str, Any]) -> set[str]:
    roles = asset.get("roles")
    return {*map(str, roles)} if isinstance(roles, list) else set()


def _plain_key(key: str) -> str:
    """Return the key of an asset without the resolution or format by which copies of a band differ."""
    return re.sub(r"(_\d\dm|-jp2)$", "", key)


@dataclass(frozen=True)
class _AssetBand:
    """A band of an asset: its file, its names, and its other properties as in `ProductBand`."""

    file: BandFile
    key: str
    own: str | None
    common: str | None
    values: _Values
    shift: float | None
    is_sentinel_2: bool
    is_imagery: bool
    is_categorical: bool

    @property
    def names(self) -> list[str]:
        """Its names, the best one first."""
        names = [name for name in (self.common, self.own, self.key) if name]
        telling = [name for name in names[1:] if self.is_sentinel_2 and _TELLING.fullmatch(name)]
        return list(dict.fromkeys((*telling[:1], *names)))

    def is_copy_of(self, other: _AssetBand) -> bool:
        """Whether both are one band in other resolutions or formats; assets of the same pixels may be other dates."""
        if (self.own or self.key, self.common) != (other.own or other.key, other.common):
            return False
        of_file, of_other = (replace(each.file, problem="") for each in (self, other))
        return self.key == other.key or of_file == of_other or of_file.resolution != of_other.resolution


def _asset_bands(path: Path, key: str, asset: Mapping[str, Any], sensor: _Sentinel2 | None) -> Iterator[_AssetBand]:
    """Yield the bands of an asset."""
    declared: list[Any] = next((asset[each] for each in BAND_KEYS if isinstance(asset.get(each), list)), [])
    bands: list[Mapping[str, Any]] = [band if isinstance(band, dict) else {} for band in declared]
    file, problem = _locate(path, key, asset.get("href"))
    resolution, count = math.inf, len(bands) or 1
    if not problem:
        try:
            with open_raster(file) as dataset:
                count, resolution = dataset.count, math.sqrt(abs(read_grid(dataset).transform.determinant))
        except RasterError as error:
            problem = str(error)
    plain = _plain_key(key)
    for number in range(1, count + 1):
        band = bands[number - 1] if len(bands) == count else {}
        common = next((band[each] for each in COMMON_NAME_KEYS if isinstance(band.get(each), str)), None)
        own = band["name"] if isinstance(band.get("name"), str) and band["name"] else None
        if common is None and normalize_name(own or plain) in SENTINEL_2 and sensor is not None:
            common = SENTINEL_2[normalize_name(own or plain)]
        values = _declared_values(path, key, [*_raster_bands(asset, number), band, asset])
        yield _AssetBand(
            BandFile(file, number, resolution, problem),
            plain if count == 1 else f"{plain}:{number}",
            own,
            common,
            values,
            sensor.shift(file, values) if sensor is not None and common is not None else None,
            is_sentinel_2=sensor is not None,
            is_imagery=not _roles(asset) or bool({"data", "reflectance"} & _roles(asset)),
            is_categorical=_is_categorical(plain, asset, band),
        )


def _raster_bands(asset: Mapping[str, Any], number: int) -> list[Mapping[str, Any]]:
    """Return the entry of a band in `raster:bands`, if there is one."""
    found = asset.get("raster:bands")
    entries = found[number - 1 : number] if isinstance(found, list) else []
    return [entry for entry in entries if isinstance(entry, dict)]


def _is_categorical(key: str, *declared: Mapping[str, Any]) -> bool:
    """Return whether the values of a band are codes or bits."""
    has_classes = any(f"classification:{kind}" in each for each in declared for kind in ("classes", "bitfields"))
    return has_classes or key.casefold() in ("scl", "fmask") or "qa" in key.casefold().split("_")


def _number(value: Any) -> float | None:
    """Return a number of JSON; None if a value is none, or is too large."""
    try:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    except OverflowError:
        return None


def _declared_values(path: Path, asset: str, places: Sequence[Mapping[str, Any]]) -> _Values:
    """Return scale, offset and no-data value that the first of several places declares.

    Raises
    ------
    DataError
        One of them is no number, or the scale is 0.
    """
    found: list[float | None] = []
    for name in ("scale", "offset", "nodata"):
        keys = (name,) if name == "nodata" else (name, f"raster:{name}")
        value = next((place[key] for place in places for key in keys if place.get(key) is not None), None)
        number = _number(value)
        if name == "nodata" and (value in _NOT_FINITE or (number is not None and not math.isfinite(number))):
            number = value = None  # these are no data anyway
        if value is not None and (number is None or not math.isfinite(number) or (name == "scale" and number == 0)):
            raise DataError(f"{path}: its asset {asset!r} declares the {name} {value!r}; correct it")
        found.append(number)
    return _Values(*found)


def _name_distinctly(bands: Sequence[_AssetBand]) -> Iterator[ProductBand]:
    """Yield bands with names of their own; copies of a band in other resolutions or formats are one band."""
    copies: list[list[_AssetBand]] = []
    for band in bands:
        found = next((each for each in copies if all(map(band.is_copy_of, each))), None)
        if found is None:
            copies.append([band])
        else:
            found.append(band)
    names = [each[0].names for each in copies]
    chosen = [each[0] for each in names]
    for place in (1, 2):
        twice = Counter(chosen)
        chosen = [
            each[min(place, len(each) - 1)] if twice[name] > 1 else name
            for name, each in zip(chosen, names, strict=True)
        ]
    for name, others, same in zip(chosen, names, copies, strict=True):
        first = min(same, key=lambda band: band.file.resolution)
        files = tuple(band.file for band in same if (band.values, band.shift) == (first.values, first.shift))
        scale, offset = first.values.scale, first.values.offset or 0.0
        if first.shift is not None:
            scale = scale or _S2_SCALE
            offset = first.shift * scale
        elif first.values.offset is not None:
            scale = scale or 1.0
        yield ProductBand(
            name, files, tuple(each for each in others if each != name), scale, offset,
            first.shift, first.values.nodata, first.is_imagery, first.is_categorical,
        )  # fmt: skip


def _locate(path: Path, key: str, href: Any) -> tuple[Path, str]:
    """Return the file of an asset, and why it must not or cannot be read; "" if it can.

    An item may come from anywhere, so it must not make segkit open any file of the user, or a URL.
    """
    text = href if isinstance(href, str) else ""
    if not text or "\0" in text:
        return path, f"{path}: its asset {key!r} has no href that is a path; correct it"
    if is_remote(text) or re.match(r"\w[\w+.-]+:", text):
        return path, (
            f"{path}: its asset {key!r} is the URL {as_path(text) if is_remote(text) else text}, and assets are read "
            "from files; download it, and write its path into the item"
        )
    relative, windows = PurePosixPath(text), PureWindowsPath(text)  # a path of either is split at "/"
    if relative.is_absolute() or windows.drive or windows.root or ".." in windows.parts:
        return path, (
            f"{path}: its asset {key!r} is {text}, and only files in the folder of the item, or below it, are read; "
            "move the item beside its files, and correct its hrefs"
        )
    file = path.parent / relative
    missing = f"{path}: is incomplete, {text} (asset {key!r}) is missing; download it again"
    return file, "" if is_there(file) else missing
