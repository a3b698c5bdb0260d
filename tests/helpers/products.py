"""Small Sentinel-2 products in the SAFE layout, and items of STAC."""

import json

import numpy as np
import rasterio
from affine import Affine

STAMP = "T32TQM_20220601T101559"
NAME = "S2A_MSIL2A_20220601T101559_N{}_R065_T32TQM_20220601T162202"
ORDER = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12"]
NATIVE = dict.fromkeys(["B02", "B03", "B04", "B08"], 10) | dict.fromkeys(["B01", "B09", "B10"], 60)
LEFT, TOP = 699_960, 5_100_000


def write_jp2(path, pixels, resolution, *, left=LEFT):
    """Write (H, W) of uint16 or uint8 without loss, as ESA does: no no-data value is declared."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="JP2OpenJPEG", count=1, height=pixels.shape[0], width=pixels.shape[1], dtype=pixels.dtype,
        crs="EPSG:32632", transform=Affine(resolution, 0, left, 0, -resolution, TOP), QUALITY="100", REVERSIBLE="YES",
    ) as dataset:  # fmt: skip
        dataset.write(pixels, 1)
    return path


def write_safe(folder, bands, *, baseline="05.11", level="2A", offset=-1000, name=None, left=LEFT):
    """Write a product; `bands` is {(name, resolution): (H, W)}. Returns its folder.

    Products of Level-1C have a file per band, without its resolution in the name. Offsets are declared from processing
    baseline 04.00 on.
    """
    product = folder / f"{name or NAME.format(baseline.replace('.', '')).replace('2A', level)}.SAFE"
    granule = product / "GRANULE" / f"L{level}_T32TQM_A036259_20220601T102237"
    listed = []
    for (band, resolution), pixels in bands.items():
        ending = f"R{resolution}m/{STAMP}_{band}_{resolution}m" if level == "2A" else f"{STAMP}_{band}"
        path = write_jp2(granule / "IMG_DATA" / f"{ending}.jp2", pixels, resolution, left=left)
        listed.append(path.relative_to(product).as_posix().removesuffix(".jp2"))
    (product / f"MTD_MSIL{level}.xml").write_text(metadata(listed, baseline, level, offset))
    return product


def metadata(listed, baseline, level, offset):
    """Return the XML of a product, in the layout of ESA's."""
    boa, add = ("BOA_", "BOA_ADD_OFFSET") if level == "2A" else ("", "RADIO_ADD_OFFSET")
    offsets = "".join(f'<{add} band_id="{number}">{offset}</{add}>' for number in range(13))
    others = '<AOT_QUANTIFICATION_VALUE unit="none">1000.0</AOT_QUANTIFICATION_VALUE>' if level == "2A" else ""
    images = "".join(f"<IMAGE_FILE>{path}</IMAGE_FILE>" for path in listed)
    return f"""<?xml version="1.0" encoding="UTF-8" standalone="no"?>
<n1:Level-{level}_User_Product xmlns:n1="https://psd-15.sentinel2.eo.esa.int/PSD/User_Product_Level-{level}.xsd">
<n1:General_Info><Product_Info><PROCESSING_BASELINE>{baseline}</PROCESSING_BASELINE>
<Product_Organisation><Granule_List><Granule>{images}</Granule></Granule_List></Product_Organisation></Product_Info>
<Product_Image_Characteristics>
<Special_Values><SPECIAL_VALUE_TEXT>NODATA</SPECIAL_VALUE_TEXT><SPECIAL_VALUE_INDEX>0</SPECIAL_VALUE_INDEX>
</Special_Values><Special_Values><SPECIAL_VALUE_TEXT>SATURATED</SPECIAL_VALUE_TEXT>
<SPECIAL_VALUE_INDEX>65535</SPECIAL_VALUE_INDEX></Special_Values>
<{boa}QUANTIFICATION_VALUE unit="none">10000</{boa}QUANTIFICATION_VALUE>{others}
{f"<List>{offsets}</List>" if float(baseline) >= 4 else ""}
</Product_Image_Characteristics></n1:General_Info></n1:Level-{level}_User_Product>
"""


def random_bands(names, *, side=60, seed=0):
    """Return {(name, resolution): pixels} of a product whose 10 m bands have a side of `side` pixels."""
    random = np.random.default_rng(seed)
    found = {}
    for name in names:
        resolution = NATIVE.get(name, 20)
        shape = (side * 10 // resolution,) * 2
        kind = (np.uint8, 4, 7) if name == "SCL" else (np.uint16, 1100, 5000)
        found[name, resolution] = random.integers(*kind[1:], shape, dtype=kind[0])
    return found


def write_item(path, assets, *, identity="scene", **properties):
    """Write an item of STAC; `assets` is {key: asset}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(item(assets, identity, **properties)))
    return path


def item(assets, identity="scene", **properties):
    """Return an item of STAC."""
    geometry = {"type": "Point", "coordinates": [0, 0]}
    head = {"type": "Feature", "stac_version": "1.0.0", "id": identity, "geometry": geometry, "links": []}
    return head | {"properties": {"datetime": "2022-06-01T10:15:59Z"} | properties, "assets": assets}
