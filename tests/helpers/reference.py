"""Slow reference implementations of the polygon engine, and maps that are difficult for it."""

import itertools
from functools import partial

import numpy as np
import rasterio.features
import shapely
from affine import Affine
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rasterio.io import MemoryFile
from scipy import ndimage

from segkit.io.class_table import MapClass
from segkit.io.raster import read_grid
from segkit.vector.geometry import concatenate_polygons, to_shapely
from segkit.vector.tracing.pipeline import BandClasses, VectorizeOptions, trace_band
from segkit.vector.tracing.pixel_measures import fit_pixel_measures, unmeasured_pixels
from segkit.vector.tracing.splitter import BOUNDARY, SPLIT

NODATA = 9
NORTH_UP = Affine(1, 0, 10, 0, -1, 50)


@st.composite
def maps(draw, most=10):
    """Draw maps of a few classes and nodata: noise, noise in blocks, or rectangles with rings and islands."""
    height, width = draw(st.integers(1, most)), draw(st.integers(1, most))
    codes = draw(st.sampled_from([(0, 1), (0, 1, 2), (0, 1, 2, NODATA), (0, 0, 0, 1, 1, 2, NODATA)]))
    kind = draw(st.sampled_from(["noise", "blocks", "rectangles"]))
    if kind == "rectangles":
        found = np.full((height, width), draw(st.sampled_from(codes)), dtype=np.uint8)
        for _ in range(draw(st.integers(1, 8))):
            top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
            bottom, right = draw(st.integers(top, height)), draw(st.integers(left, width))
            found[top:bottom, left:right] = draw(st.sampled_from(codes))
        return found
    found = draw(arrays(np.uint8, (height, width), elements=st.sampled_from(codes)))
    return np.kron(found, np.ones((2, 3), dtype=np.uint8)) if kind == "blocks" else found


def spiral(size):
    """Return a spiral of two arms, each one pixel wide."""
    found, at, step = np.zeros((size, size), dtype=np.uint8), (0, 0), (0, 1)
    found[at] = 1
    for _ in range(size * size):
        for _ in range(2):
            to, beyond = (tuple(np.add(at, np.multiply(step, k))) for k in (1, 2))
            inside = all(0 <= x < size for x in to)
            if inside and not (all(0 <= x < size for x in beyond) and found[beyond]) and not found[to]:
                at = to
                found[at] = 1
                break
            step = (step[1], -step[0])
    return found


PATTERNS = {
    "one pixel": [[1]],
    "one class": np.ones((3, 5)),
    "one row": [[1, 1, 2, NODATA, 2, 1]],
    "one column": [[1], [1], [2], [NODATA], [2], [1]],
    "no data only": np.full((3, 3), NODATA),
    "checkerboard": np.indices((6, 7)).sum(axis=0) % 2,
    "checkerboard of three": np.indices((7, 8)).sum(axis=0) % 3,
    "spiral": spiral(13),
    "islands in holes in islands": np.minimum.reduce([*np.indices((9, 9)), *np.indices((9, 9))[:, ::-1, ::-1]]) % 2,
    "holes that touch": [[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 1]],
    "holes that touch, the other way": [[1, 1, 1, 1], [1, 1, 0, 1], [1, 0, 1, 1], [1, 1, 1, 1]],
    "a hole that touches the outer ring": [[1, 1, 1], [1, 0, 1], [1, 1, 0]],
    "a ring that closes diagonally": [[0, 1, 1], [1, 0, 1], [1, 1, 1]],
    "a T-junction on a straight side": [[1, 1, 1, 1], [2, 2, 0, 0]],
    "two classes in a hole": [[1, 1, 1, 1], [1, 0, 2, 1], [1, 1, 1, 1]],
    "diagonal no data": [[1, NODATA], [NODATA, 1]],
    "no data in a hole": [[1, 1, 1], [1, NODATA, 1], [1, 1, 1]],
    "a comb": np.array([[1] * 9, [1, 0] * 4 + [1], [1, 0] * 4 + [1]]),
    "a comb upside down": np.array([[1, 0] * 4 + [1], [1, 0] * 4 + [1], [1] * 9]),
}
PATTERNS = {name: np.array(codes, dtype=np.uint8) for name, codes in PATTERNS.items()}


def traced(
    codes, *, block=None, transform=NORTH_UP, crs=None, confidence=None, wanted=None, outline_counts=None,
    split_counts=None, **options,
):  # fmt: skip
    """Write an array to a file, trace it, and return the polygons and their codes."""
    height, width = codes.shape
    profile = {"height": height, "width": width, "count": 1, "dtype": codes.dtype, "nodata": NODATA}
    with MemoryFile() as file:
        with file.open(driver="GTiff", transform=transform, crs=crs, **profile) as dataset:
            dataset.write(codes, 1)
        with file.open() as dataset:
            pixel_measures = unmeasured_pixels() if crs is None else fit_pixel_measures(read_grid(dataset))
            kinds = BandClasses(
                lambda code: MapClass(str(code), code) if wanted is None or code in wanted else None,
                is_protected=lambda code: code == options.get("boundary_class"),
                is_regularized=lambda code: code in options.get("regularize", ()),
                split_kind=partial(_split_kind, options),
            )
            chosen = {"min_area": None, "fill_holes": None, "simplify": None, "smooth": False} | options
            arguments = (
                dataset,
                1,
                kinds,
                pixel_measures,
                VectorizeOptions.from_text(**chosen),
                confidence,
                lambda rows: None,
            )
            counts = {"outline_counts": outline_counts, "split_counts": split_counts}
            traced_parts = trace_band(*arguments, block=block, **counts)
            polygons = concatenate_polygons(list(traced_parts))
    return polygons, np.array(kinds.codes, dtype=np.int64)[polygons.class_index]


def _split_kind(options, code):
    return BOUNDARY if code == options.get("boundary_class") else SPLIT if code in options.get("split", ()) else 0


def labels(codes):
    """Return 4-connected regions, numbered in raster order of their first pixels; nodata is -1."""
    image = np.full(codes.shape, -1)
    for code in np.unique(codes[codes != NODATA]):
        found, _ = ndimage.label(codes == code)
        image = np.where(found > 0, found + image.max(), image)
    _, first, flat = np.unique(image, return_index=True, return_inverse=True)
    outside = int(image.min() < 0)
    rank = np.argsort(np.argsort(first[outside:]))
    return np.append(rank, -1)[flat - outside].reshape(codes.shape) if rank.size else image


def vertices(image):
    """Return {region: its vertices}: corners where its border bends, or where three or more regions meet."""
    padded = np.pad(image, 1, constant_values=-1)
    found = {}
    for row, column in np.ndindex(padded.shape[0] - 1, padded.shape[1] - 1):
        nw, ne, sw, se = padded[row : row + 2, column : column + 2].ravel().tolist()
        straight = (nw == ne and sw == se) or (nw == sw and ne == se)
        if not straight:
            for region in {nw, ne, sw, se} - {-1}:
                found.setdefault(region, set()).add((column, row))
    return found


def nodes(image):
    """Return corners where three or more edges meet."""
    padded = np.pad(image, 1, constant_values=-1)
    nw, ne, sw, se = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    edges = sum((one != other).astype(int) for one, other in ((nw, ne), (ne, se), (se, sw), (sw, nw)))
    return {(column, row) for row, column in np.argwhere(edges > 2)}


def contacts(image):
    """Return {region: {neighbour, or -1: (number of horizontal, of vertical sides)}}."""
    padded = np.pad(image, 1, constant_values=-1)
    found = {region: {} for region in np.unique(image[image >= 0]).tolist()}
    for axis, (one, other) in enumerate(((padded[1:], padded[:-1]), (padded[:, 1:], padded[:, :-1]))):
        pairs = np.stack([one.ravel(), other.ravel()])
        pairs, counts = np.unique(pairs[:, pairs[0] != pairs[1]], axis=1, return_counts=True)
        for (a, b), count in zip(pairs.T.tolist(), counts.tolist(), strict=True):
            for here, there in ((a, b), (b, a)):
                if here >= 0:
                    found[here].setdefault(there, [0, 0])[axis] += count
    return found


def merged(codes, least, sides=(1, 1)):
    """Merge the smallest region below `least` pixels into the class with the longest shared border; repeat."""
    codes = codes.copy()
    while True:
        image = labels(codes)
        touching = contacts(image)
        small = []
        for region, others in touching.items():
            inside = image == region
            shared = {}
            for other, lengths in others.items():
                if other >= 0:
                    code = int(codes[image == other][0])
                    shared[code] = shared.get(code, 0) + np.dot(lengths, sides)
            if inside.sum() < least and shared:
                small.append((inside.sum(), region, shared))
        if not small:
            return codes
        _, region, shared = min(small, key=lambda one: one[:2])
        codes[image == region] = min(shared, key=lambda code: (-shared[code], code))


def filled(codes, least):
    """Fill groups of small regions that are enclosed by one small region, or by large regions of one class."""
    image = labels(codes)
    touching = contacts(image)
    size = {region: int((image == region).sum()) for region in touching}
    code = {region: int(codes[image == region][0]) for region in touching} | {-1: None}
    small = {region for region in touching if size[region] < least}

    def group(start, without):
        found, waiting, around = {start}, [start], set()
        while waiting:
            for other in touching[waiting.pop()]:
                if other in small and other not in found and other != without:
                    found.add(other)
                    waiting.append(other)
                elif other not in small:
                    around.add(other)
        return found, around, sum(size[region] for region in found)

    best = {}
    for region in small:
        for other in touching[region].keys() & small:
            inside, around, total = group(other, without=region)
            if not around and total < least:
                for one in inside:
                    best[one] = max(best.get(one, (0, 0)), (total, code[region]), key=lambda pair: pair[0])
    for region in small:
        inside, around, total = group(region, without=None)
        kinds = {code[one] for one in around}
        if total < least and len(kinds) == 1 and None not in kinds:
            best |= dict.fromkeys(inside, (total, *kinds))
    out = codes.copy()
    for region, (_, new) in best.items():
        out[image == region] = new
    return out


def rasterio_polygons(codes):
    """Return polygons and codes by GDAL, as an oracle."""
    found = list(rasterio.features.shapes(codes, mask=codes != NODATA, connectivity=4, transform=NORTH_UP))
    polygons = np.array([shapely.geometry.shape(geometry) for geometry, _ in found] + [None], dtype=object)[:-1]
    return polygons, np.array([code for _, code in found])


def same_polygons(one, other):
    """Return whether two results of `traced` are bitwise equal."""
    (first, codes), (second, other_codes) = one, other
    names = ("vertices", "ring", "polygon", "pixels", "confidence_count", "area", "perimeter", "confidence_sum")
    equal = partial(np.array_equal, equal_nan=True)
    return np.array_equal(codes, other_codes) and all(equal(getattr(first, n), getattr(second, n)) for n in names)


def options():
    """Return every combination of generalisations, as parameters of `traced`."""
    choices = {
        "min_area": [None, "4px"],
        "fill_holes": [None, "5px"],
        "simplify": [None, "0.9px", "1.5px", "4px"],
        "smooth": [False, True],
    }
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


def image_of(result, codes):
    """Rasterize polygons to the grid of `codes`."""
    polygons, own = result
    pairs = [(polygon, int(code)) for polygon, code in zip(to_shapely(polygons), own, strict=True)]
    if not pairs:
        return np.full(codes.shape, NODATA, dtype=np.uint8)
    return rasterio.features.rasterize(pairs, codes.shape, fill=NODATA, transform=NORTH_UP, dtype="uint8")
