"""Measure `segkit vectorize` beside the usual route and its limits. One run prints all.

    .venv/bin/python tools/bench_vectorize.py                           # everything, some minutes on two cores
    .venv/bin/python tools/bench_vectorize.py speed command simplify    # some sections
    .venv/bin/python tools/bench_vectorize.py --maps ../shared/data/label_maps --sizes 8192 32768

The usual route is `rasterio.features.shapes`, a geometry object for each shape, and `shapely.coverage_clean`, which
makes them fit each other. Kernels are compiled before anything is timed. Whatever counts memory runs in a process of
its own, since a process's peak never falls.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MAPS = Path(__file__).resolve().parents[2] / "shared" / "data" / "label_maps"
NLCD = "nlcd.tif"
LARGE = ("landcover_polygon_1m.tif", "S2A_MSIL2A_20170725T142751_N9999_R053_T19GBQ_20240410T040247_expected_output.tif")
COLUMNS = ["class_id", "class", "area_ha", "pixels", "perim_m", "geometry"]


@contextmanager
def timed(into: dict[str, float], name: str) -> Iterator[None]:
    """Add the seconds that a block takes."""
    started = time.perf_counter()
    yield
    into[name] = into.get(name, 0.0) + time.perf_counter() - started


def peak() -> float:
    """Return the most memory that this process has held, in MiB; getrusage counts its parent's, too."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 2**10
    raise OSError("/proc tells no VmHWM")


def elsewhere(*arguments: Any) -> dict[str, Any]:
    """Run a function of this file in a process of its own and return what it found."""
    command = [sys.executable, __file__, "--elsewhere", *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def warm() -> None:
    """Have all kernels compiled, or read from numba's cache."""
    import numpy as np

    from segkit.vector import vectorize

    with tempfile.TemporaryDirectory() as folder:
        codes = np.random.default_rng(0).integers(0, 4, (64, 64), dtype=np.uint8)
        path = make_map(Path(folder) / "map.tif", 64, codes)
        vectorize(path, Path(folder) / "map.gpkg")
        vectorize(path, Path(folder) / "map.parquet", min_area="3px", fill_holes="9px", simplify="2px", smooth=True)


def make_map(path: Path, size: int, codes: Any = None) -> Path:
    """Write a map of patches of 8 classes, a thousand pixels each, of one density at any size.

    Regions are small, as one that spans the map needs memory for all of its outline.
    """
    import numpy as np
    import rasterio
    from affine import Affine
    from rasterio.windows import Window
    from scipy import ndimage

    profile = {"driver": "GTiff", "height": size, "width": size, "count": 1, "dtype": "uint8", "nodata": 255}
    profile |= {"crs": "EPSG:32632", "transform": Affine(10, 0, 300_000, 0, -10, 9_000_000 if codes is None else 5e6)}
    with rasterio.open(path, "w", **profile, tiled=True, compress="deflate", zlevel=1, bigtiff="IF_SAFER") as dataset:
        if codes is not None:
            dataset.write(codes, 1)
            return path
        random = np.random.default_rng(0)
        # Cells of 32 pixels, each of a random class, seen through wavy glass; and pixels that stand out.
        wave = [60 * ndimage.gaussian_filter(random.standard_normal((2048, 2048)), 6, mode="wrap") for _ in range(2)]
        rows, columns = ((np.indices((2048, 2048)) + np.round(wave)) // 32 % 64).astype(np.int64)
        for top in range(0, size, 2048):
            for left in range(0, size, 2048):
                block = random.integers(1, 9, (64, 64), dtype=np.uint8)[rows, columns]
                speckle = random.random(block.shape) < 0.002
                block[speckle] = random.integers(1, 9, int(speckle.sum()))
                dataset.write(block, 1, window=Window(left, top, 2048, 2048))
    return path


def usual(path: Path, *, keep: bool = True) -> dict[str, Any]:
    """Take the usual route, and say how long each step takes; keep its polygons, or not."""
    import numpy as np
    import rasterio
    import rasterio.features
    import shapely
    from shapely.geometry import shape

    took: dict[str, float] = {}
    with timed(took, "reading"), rasterio.open(path) as dataset:
        codes, mask, transform = dataset.read(1), dataset.read_masks(1) > 0, dataset.transform
    with timed(took, "shapes"):
        found = list(rasterio.features.shapes(codes, mask=mask, connectivity=4, transform=transform))
    with timed(took, "geometry"):
        polygons = np.array([shape(geometry) for geometry, _ in found], dtype=object)
    with timed(took, "clean"):
        clean = shapely.coverage_clean(polygons)
    return took | {"polygons": len(polygons), "peak": peak()} | ({"clean_polygons": clean} if keep else {})


def ours(path: Path, **options: Any) -> dict[str, Any]:
    """Take segkit's route to a GeoDataFrame."""
    from segkit.vector import polygons

    took: dict[str, float] = {}
    with timed(took, "seconds"):
        frame = polygons(path, background=True, **options)
    return took | {"polygons": len(frame), "peak": peak(), "frame": frame}


def rim(codes: Any, mask: Any) -> int:
    """Return the length, in sides of pixels, of the border between what has data and what has not."""
    import numpy as np

    padded = np.pad(np.broadcast_to(mask, codes.shape), 1)
    return int(sum(np.count_nonzero(np.diff(padded, axis=axis)) for axis in (0, 1)))


def gaps(polygons: Any, size: tuple[float, float], rim: int) -> str:
    """Say whether polygons are a valid coverage: each directed edge once, and its reverse once or along the rim.

    `shapely.coverage_is_valid` says the same, but takes minutes where one polygon has very many neighbours. Edges are
    matched on the grid of the pixels' corners, where the vertices of polygons lie that are not smoothed.
    """
    import numpy as np
    import shapely

    _, vertices, (rings, _) = shapely.to_ragged_array(polygons)
    at = np.rint((vertices - vertices.min(axis=0)) / size).astype(np.int64)
    number = at[:, 0] << 32 | at[:, 1]
    within = np.ones(len(at), dtype=bool)
    within[rings[1:] - 1] = False
    start, end = number[:-1][within[:-1]], number[1:][within[:-1]]
    length = np.abs(np.diff(at, axis=0)).sum(axis=1)[within[:-1]]
    edges, back = np.stack([start, end], axis=1), np.stack([end, start], axis=1)
    once = len(np.unique(edges, axis=0)) == len(edges)
    _, first, counts = np.unique(np.concatenate([edges, back]), axis=0, return_index=True, return_counts=True)
    # Of an edge without a reverse there is the edge itself, and, turned around, what would be its reverse.
    alone = first[(counts == 1) & (first < len(edges))]
    valid = bool(shapely.is_valid(polygons).all()) and once and int(length[alone].sum()) == rim
    return f"valid coverage: {valid} (edges without a neighbour: {int(length[alone].sum())} sides, the rim: {rim})"


def speed(options: argparse.Namespace) -> None:
    """Map to GeoDataFrame, against the usual route."""
    import numpy as np
    import rasterio

    for name in (NLCD, *LARGE):
        path = options.maps / name
        with rasterio.open(path) as dataset:
            megapixels, pixel = dataset.width * dataset.height / 1e6, dataset.res
            pixels = dataset.read(1, masked=True)
            outline = rim(pixels, ~np.ma.getmaskarray(pixels))
            found = np.unique(pixels.compressed(), return_counts=True)
            histogram = dict(zip(*(part.tolist() for part in found), strict=True))
            del pixels
        ours(path)
        # Each turn's result is let go of before the next one begins; so it is for the usual route.
        best = min(ours(path)["seconds"] for _ in range(options.repeats))
        frame = ours(path)["frame"]
        turns = [usual(path, keep=False) for _ in range(options.usual)]
        theirs = {key: min(turn[key] for turn in turns) for key in turns[0]}
        both = theirs["shapes"] + theirs["geometry"] + theirs["reading"]
        whole = both + theirs["clean"]
        print(f"# {name}: {megapixels:.1f} Mpx, {len(frame)} polygons")
        print(
            f"usual: reading {theirs['reading']:.3f} s, shapes {theirs['shapes']:.2f} s, geometry "
            f"{theirs['geometry']:.2f} s, clean {theirs['clean']:.2f} s; {theirs['polygons']} polygons"
        )
        print(
            f"segkit: {best:.3f} s with reading and attributes, {megapixels / best:.0f} Mpx/s; {whole / best:.1f} "
            f"times as fast as all of that, {both / best:.1f} times without cleaning"
        )
        assert (frame.columns == COLUMNS).all()
        area = np.rint(frame.geometry.area / (pixel[0] * pixel[1])).astype(np.int64)
        exact = bool((area == frame["pixels"]).all())
        sums = frame.groupby("class_id")["pixels"].sum().to_dict() == histogram
        print(f"area of every polygon = pixels x pixel area: {exact}; sums over classes = histogram of the map: {sums}")
        print(f"{gaps(frame.geometry.to_numpy(), pixel, outline)}\n", flush=True)


def command(options: argparse.Namespace) -> None:
    """Take the whole command apart: start-up, reading, kernel, attributes, writing."""
    import pyogrio

    for name in (NLCD, *LARGE):
        path = options.maps / name
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out.gpkg"
            runs = [elsewhere("parts", path, out, time.time()) for _ in range(options.repeats)]
            best = min(runs, key=lambda run: run["all"])
            table = pyogrio.read_dataframe(out, layer="out", use_arrow=True)
            limits: dict[str, float] = {}
            with timed(limits, "copy"):
                shutil.copyfile(path, Path(folder) / "copy.tif")
            with timed(limits, "pyogrio"):
                pyogrio.write_dataframe(table, Path(folder) / "same.gpkg", use_arrow=True)
        rest = best["all"] - sum(seconds for part, seconds in best.items() if part not in ("all", "peak"))
        print(
            f"# the command on {name}, {len(table)} polygons to GeoPackage: {best['all']:.2f} s, {best['peak']:.0f} MiB"
        )
        print(
            ", ".join(f"{part} {best[part]:.2f} s" for part in best if part not in ("all", "peak")),
            f"rest {rest:.2f} s",
        )
        print(
            f"limits: copying the map {limits['copy'] * 1000:.1f} ms; pyogrio writes the same frame in "
            f"{limits['pyogrio']:.2f} s\n",
            flush=True,
        )


def _parts(path: str, out: str, begun: str) -> dict[str, float]:
    """Run the command and add up what its parts take, from the moment when its process was started."""
    took: dict[str, float] = {}
    from segkit.vector import batch, vectorize
    from segkit.vector import map_source as source
    from segkit.vector.formats import writer as write
    from segkit.vector.tracing import runs, tracer

    def measure(owner: Any, name: str, part: str) -> None:
        function: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(function)
        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            with timed(took, part):
                return function(*arguments, **keywords)

        setattr(owner, name, wrapped)

    import pyogrio  # noqa: F401 - what the parts import first would count as theirs

    took["start-up"] = time.time() - float(begun)
    measure(runs, "_read_codes", "reading")
    measure(runs, "_split", "kernel")
    measure(tracer.Tracer, "trace", "kernel")
    for owner, name in ((source, "fit_pixel_measures"), (batch.Batch, "to_arrow")):
        measure(owner, name, "attributes")
    measure(tracer, "measure_runs", "measuring")
    measure(write.Writer, "write", "writing")
    original = write.open_writer

    @contextmanager
    def timed_writer(*arguments: Any, **keywords: Any) -> Iterator[Any]:
        with original(*arguments, **keywords) as writer:
            yield writer
            started = time.perf_counter()
        took["writing"] += time.perf_counter() - started

    write.open_writer = timed_writer
    vectorize(path, out, background=True, overwrite=True)
    # Runs are measured inside of tracing.
    measuring = took.pop("measuring")
    took["kernel"] -= measuring
    took["attributes"] += measuring
    return took | {"all": time.time() - float(begun), "peak": peak()}


def memory(options: argparse.Namespace) -> None:
    """Measure peak memory of whole commands, real and at two sizes."""
    for name in (NLCD, *LARGE):
        path = options.maps / name
        theirs, mine = elsewhere("usual", path), elsewhere("ours", path)
        with tempfile.TemporaryDirectory() as folder:
            file = elsewhere("file", path, Path(folder) / "out.gpkg")
        print(
            f"# peak RSS on {name}: usual {theirs['peak']:.0f} MiB, segkit to a GeoDataFrame {mine['peak']:.0f} MiB, "
            f"to a GeoPackage {file['peak']:.0f} MiB (of it imports {file['imports']:.0f} MiB)",
            flush=True,
        )
    found = []
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            path = make_map(Path(folder) / "map.tif", size)
            done = elsewhere("file", path, Path(folder) / "out.gpkg")
        found.append(done)
        megapixels = size * size / 1e6
        print(
            f"made map {size} x {size}: {done['polygons']} polygons in {done['engine']:.2f} s "
            f"({megapixels / done['engine']:.0f} Mpx/s), a GeoPackage with its index {done['seconds']:.1f} s; peak "
            f"RSS {done['peak']:.0f} MiB",
            flush=True,
        )
    pixels = (options.sizes[-1] / options.sizes[0]) ** 2
    print(
        f"{options.sizes[-1]} / {options.sizes[0]}: {pixels:.1f} times the pixels, "
        f"{found[-1]['engine'] / found[0]['engine']:.1f} times the time, with the file "
        f"{found[-1]['seconds'] / found[0]['seconds']:.1f} times, "
        f"{found[-1]['peak'] / found[0]['peak']:.3f} times the memory\n"
    )


def _file(path: str, out: str) -> dict[str, Any]:
    warm()
    from segkit.vector import vectorize
    from segkit.vector.map_source import open_map
    from segkit.vector.tracing.pipeline import VectorizeOptions

    imports = peak()
    took: dict[str, float] = {}
    chosen = {"probabilities": None, "classes": None, "background": True, "names": None}
    with timed(took, "engine"), open_map(path, VectorizeOptions(), **chosen) as source:
        polygons = sum(len(batch) for batch in source.batches(dissolve=False, show_progress=False))
    with timed(took, "seconds"):
        vectorize(path, out, background=True)
    return took | {"polygons": polygons, "peak": peak(), "imports": imports}


def simplify(options: argparse.Namespace) -> None:
    """Fewer vertices, beside `shapely.coverage_simplify`."""
    import numpy as np
    import rasterio
    import shapely

    path = options.maps / NLCD
    with rasterio.open(path) as dataset:
        pixel, outline = dataset.res, rim(dataset.read(1), dataset.read_masks(1) > 0)
    plain = ours(path)["frame"]
    theirs = usual(path)
    print(f"# simplify {NLCD}: {len(plain)} polygons, {shapely.get_num_coordinates(plain.geometry).sum()} vertices")
    for tolerance in (1.5, 3, 10):
        ours(path, simplify=f"{tolerance}px")
        mine = ours(path, simplify=f"{tolerance}px")
        frame = mine["frame"]
        started = time.perf_counter()
        simple = shapely.coverage_simplify(theirs["clean_polygons"], tolerance * pixel[0])
        seconds = time.perf_counter() - started
        lost = int((shapely.get_num_coordinates(simple) == 0).sum())
        moved = _displacement(plain.geometry.to_numpy(), frame.geometry.to_numpy(), pixel[0])
        print(
            f"{tolerance} px: {mine['seconds']:.3f} s, {shapely.get_num_coordinates(frame.geometry).sum()} vertices, "
            f"{len(plain) - len(frame)} regions lost, largest displacement {moved:.2f} px, "
            f"{gaps(frame.geometry.to_numpy(), pixel, outline)}; beside it clean {theirs['clean']:.1f} s + "
            f"coverage_simplify {seconds:.1f} s, {shapely.get_num_coordinates(simple).sum()} vertices, "
            f"{lost} polygons empty",
            flush=True,
        )
        assert np.array_equal(np.sort(plain["pixels"]), np.sort(frame["pixels"]))
    print()


def _displacement(before: Any, after: Any, pixel: float) -> float:
    """Return how far any vertex lies from the simplified outline of its polygon, in pixels."""
    import numpy as np
    import shapely

    outlines = shapely.boundary(after)
    vertices, own = shapely.get_coordinates(before, return_index=True)
    return float(np.max(shapely.distance(shapely.points(vertices), outlines[own]))) / pixel


def formats(options: argparse.Namespace) -> None:
    """Write each format, and read it back."""
    import geopandas
    import pyogrio
    import shapely

    from segkit.vector import polygons, vectorize
    from segkit.vector.formats.writer import FORMATS

    path = options.maps / NLCD
    frame = polygons(path, background=True)
    print(f"# formats: {NLCD}, {len(frame)} polygons")
    for ending in FORMATS:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / f"out{ending}"
            took: dict[str, float] = {}
            with timed(took, "seconds"):
                vectorize(path, out, background=True)
            read = geopandas.read_parquet(out) if ending == ".parquet" else geopandas.read_file(out, layer="out")
            expected = frame if ending != ".geojson" else frame.to_crs(4326)
            order = ["class_id", "pixels", "area_ha", "perim_m"]
            first, second = (part.sort_values(order).reset_index(drop=True) for part in (expected, read))
            area = abs(first.area.sum() / second.area.sum() - 1)
            same = len(first) == len(second) and (first[order[:2]] == second[order[:2]]).all(axis=None)
            size = sum(file.stat().st_size for file in Path(folder).glob("out*")) / 1e6
            about = "" if ending == ".parquet" else pyogrio.read_info(out, layer="out")
            detail = f"{about['encoding']}, {about['crs']}, {list(about['fields'])}" if about else f"{read.crs.name}"
            print(
                f"{ending}: {took['seconds']:.2f} s, {size:.1f} MB; reads back: {same}, vertices "
                f"{shapely.get_num_coordinates(second.geometry).sum()} of "
                f"{shapely.get_num_coordinates(first.geometry).sum()}, area off by {area:.1e}; {detail}",
                flush=True,
            )
    print()


SECTIONS = {"speed": speed, "command": command, "memory": memory, "simplify": simplify, "formats": formats}


def main() -> None:
    """Run the sections that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(SECTIONS)}; default: all")
    parser.add_argument("--maps", type=Path, default=MAPS, help="folder of label maps")
    parser.add_argument("--sizes", type=int, nargs="+", default=[8192, 32768], help="memory: sides of made maps")
    parser.add_argument("--repeats", type=int, default=5, help="turns, of which the fastest counts")
    parser.add_argument("--usual", type=int, default=2, help="turns of the usual route, of which the fastest counts")
    parser.add_argument("--elsewhere", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.elsewhere:
        name, *arguments = options.elsewhere
        if name == "parts":
            found = _parts(*arguments)
        elif name == "file":
            found = _file(*arguments)
        else:
            if name == "ours":
                warm()
            found = {"usual": usual, "ours": ours}[name](Path(arguments[0]))
        print(json.dumps({key: value for key, value in found.items() if isinstance(value, (int, float))}))
        return
    if unknown := set(options.sections) - SECTIONS.keys():
        parser.error(f"unknown section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    os.environ.setdefault("GDAL_CACHEMAX", "128")
    warm()
    for section in options.sections or SECTIONS:
        SECTIONS[section](options)


if __name__ == "__main__":
    main()
