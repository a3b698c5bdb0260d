"""Sentinel-2 products in the SAFE format: a folder with metadata in XML, and a JPEG 2000 file per band."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NoReturn
from xml.etree import ElementTree
from xml.parsers import expat

from segkit.errors import RasterError
from segkit.io.paths import is_there
from segkit.io.product_band import BandFile, ProductBand

# Numbers of bands in the metadata are places in this list; with the pixel sizes in metres of Level-1C (ESA, "Sentinel-2
# Products Specification Document").
SPECTRAL = {
    "B01": 60, "B02": 10, "B03": 10, "B04": 10, "B05": 20, "B06": 20, "B07": 20, "B08": 10, "B8A": 20, "B09": 60,
    "B10": 60, "B11": 20, "B12": 20,
}  # fmt: skip
# Aerosol optical thickness, water vapour, scene classification: Level-2A only.
_OTHERS = ("AOT", "WVP", "SCL")
_IMAGE = re.compile(rf".*_({'|'.join((*SPECTRAL, *_OTHERS))})(?:_(10|20|60)m)?")
_METADATA = ("MTD_MSIL*.xml", "S2?_*_MTD_SAFL*.xml")
# From this processing baseline on, stored values have an offset (BOA_ADD_OFFSET, RADIO_ADD_OFFSET).
OFFSET_BASELINE = 4.0
_MAX_BYTES = 10**8


def is_safe(path: Path) -> bool:
    """Return whether a path is the folder of a Sentinel-2 product."""
    return path.is_dir() and (path.suffix.upper() == ".SAFE" or find_metadata(path) is not None)


def find_metadata(folder: Path) -> Path | None:
    """Return the file with the metadata of a product; None if the folder has none."""
    return next((file for pattern in _METADATA for file in sorted(folder.glob(pattern))), None)


def read_safe(folder: Path) -> tuple[ProductBand, ...]:
    """Return the bands of a product, the spectral ones first.

    Raises
    ------
    RasterError
        Metadata are missing, damaged, or not those of a Sentinel-2 product of one granule.
    """
    metadata = find_metadata(folder)
    if metadata is None:
        _refuse(folder, "has no metadata (MTD_MSIL1C.xml or MTD_MSIL2A.xml), so it is incomplete, or not of Sentinel-2")
    root = _parse(metadata)
    units = _Units(root, metadata)
    files: dict[str, list[BandFile]] = {}
    for path in _images(folder, root):
        if found := _IMAGE.fullmatch(path.stem):
            name, pixel = found.groups()
            missing = f"{folder}: is incomplete, {path.relative_to(folder)} is missing; download it again"
            resolution = float(pixel or SPECTRAL.get(name, math.inf))
            files.setdefault(name, []).append(BandFile(path, 1, resolution, "" if is_there(path) else missing))
    if not files:
        _refuse(folder, "has no images of bands (GRANULE/*/IMG_DATA/*.jp2), so it is incomplete")
    return tuple(units.band(name, tuple(files[name])) for name in (*SPECTRAL, *_OTHERS) if name in files)


def _images(folder: Path, root: ElementTree.Element) -> list[Path]:
    """Return the images of a product: those that are there, and those that its metadata list."""
    granules = [path for path in sorted((folder / "GRANULE").glob("*")) if path.is_dir()]
    if len(granules) != 1:
        _refuse(
            folder,
            f"has {len(granules)} granules (folders in GRANULE), and a scene is one; split it into one product for each"
            if granules
            else "has no granule (a folder in GRANULE), so it is incomplete",
        )
    data = granules[0] / "IMG_DATA"
    found = {path.stem: path for pattern in ("*.jp2", "R*m/*.jp2") for path in sorted(data.glob(pattern))}
    # Only the names of what is listed count, so metadata cannot lead to files elsewhere.
    for element in (*root.iter("IMAGE_FILE"), *root.iter("IMAGE_ID")):
        listed = PurePosixPath((element.text or "").strip())
        pixel = re.search(r"_(\d\d)m$", listed.name)
        inside = data / f"R{pixel[1]}m" if pixel else data
        if listed.name and "\0" not in listed.name:
            found.setdefault(listed.name, inside / f"{listed.name}.jp2")
    return list(found.values())


class _Units:
    """What the metadata of a product say about the values of its bands."""

    def __init__(self, root: ElementTree.Element, file: Path) -> None:
        self._root, self._file = root, file
        self._is_2a = "2A" in root.tag
        prefix = "BOA_" if self._is_2a else ""
        self._quantification = self._number(f"{prefix}QUANTIFICATION_VALUE", f"L2A_{prefix}QUANTIFICATION_VALUE")
        self._offsets = dict(self._read_offsets("BOA_ADD_OFFSET" if self._is_2a else "RADIO_ADD_OFFSET"))
        self._has_offsets = (self._number("PROCESSING_BASELINE") or 0) >= OFFSET_BASELINE
        self._nodata = self._read_nodata()

    def band(self, name: str, files: tuple[BandFile, ...]) -> ProductBand:
        """Return a band with its units."""
        if name == "SCL":
            return ProductBand(name, files, is_imagery=False, is_categorical=True)
        if name not in SPECTRAL:
            quantification = self._number(f"{name}_QUANTIFICATION_VALUE", f"L2A_{name}_QUANTIFICATION_VALUE")
            return ProductBand(name, files, scale=1 / quantification if quantification else None, is_imagery=False)
        shift = self._offsets.get(list(SPECTRAL).index(name), None if self._has_offsets else 0.0)
        if not self._quantification or shift is None:
            missing = "offset (BOA_ADD_OFFSET, RADIO_ADD_OFFSET)" if self._quantification else "QUANTIFICATION_VALUE"
            _refuse(self._file, f"declares no {missing} of {name}, so the units of the product are not known")
        scale = 1 / self._quantification
        return ProductBand(name, files, (), scale, shift * scale, shift, self._nodata)

    def _read_offsets(self, tag: str) -> Iterator[tuple[int, float]]:
        for element in self._root.iter(tag):
            number = element.get("band_id", "")
            if not number.isdecimal():
                _refuse(self._file, f"has a {tag} without the number of its band")
            yield int(number), self._parse(tag, element.text)

    def _read_nodata(self) -> float:
        for special in self._root.iter("Special_Values"):
            if (special.findtext("SPECIAL_VALUE_TEXT") or "").strip() == "NODATA":
                return self._parse("NODATA", special.findtext("SPECIAL_VALUE_INDEX"))
        return 0.0

    def _number(self, *tags: str) -> float | None:
        """Return the number of the first tag that is there."""
        found = next((element for tag in tags for element in self._root.iter(tag)), None)
        return None if found is None else self._parse(found.tag, found.text)

    def _parse(self, tag: str, text: str | None) -> float:
        try:
            number = float(text or "")
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            _refuse(self._file, f"{tag} is {text!r}, and must be a number")
        return number


def _parse(file: Path) -> ElementTree.Element:
    """Return the content of an XML file; one that declares a document type, and so entities, is refused.

    Tags have no prefixes in the metadata, except that of the root.
    """
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate("utf-8")
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = lambda *_: _refuse(file, "declares a document type, which metadata do not")
    try:
        if file.stat().st_size > _MAX_BYTES:
            _refuse(file, f"is larger than {_MAX_BYTES // 10**6} MB, so it is not the metadata of a product")
        parser.Parse(file.read_bytes(), True)
    except (expat.ExpatError, OSError) as error:
        _refuse(file, f"is damaged ({error})")
    root: ElementTree.Element = builder.close()
    return root


def _refuse(path: Path, why: str) -> NoReturn:
    raise RasterError(f"{path}: {why}; download the product again, or give its bands as a stack of files")
