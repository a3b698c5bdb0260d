"""Draw what `segkit vectorize` makes of a part of a map: docs/images/vectorize.png.

.venv/bin/segkit demo --task landcover && .venv/bin/python tools/draw_vectorize.py demo/landcover/map.tif out.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import rasterio
import shapely
from rasterio.windows import Window, bounds

from segkit.io.class_table import Legend
from segkit.vector import polygons

PANELS: dict[str, dict[str, object]] = {
    "exact": {},
    "--min-area 0.3ha": {"min_area": "0.3ha"},
    "and --simplify 15m": {"min_area": "0.3ha", "simplify": "15m"},
    "and --smooth": {"min_area": "0.3ha", "simplify": "15m", "smooth": True},
}


def main() -> None:
    """Draw a window of a map, its polygons made in several ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("map", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--window", type=int, nargs=4, default=[150, 200, 70, 70], help="column, row, width, height")
    options = parser.parse_args()
    with rasterio.open(options.map) as dataset:
        left, bottom, right, top = bounds(Window(*options.window), dataset.transform)
        colors = {one.name: one.color for one in Legend.from_dataset(dataset).classes}
    figure, axes = plt.subplots(1, len(PANELS), figsize=(3.2 * len(PANELS), 3.6), layout="constrained")
    for axis, (title, how) in zip(axes, PANELS.items(), strict=True):
        frame = polygons(options.map, background=True, **how).cx[left:right, bottom:top]
        vertices = shapely.get_num_coordinates(frame.geometry).sum()
        frame.plot(ax=axis, color=frame["class"].map(colors), edgecolor="black", linewidth=0.5)
        axis.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], xlabel="", ylabel="")
        axis.set_title(f"{title}\n{len(frame)} polygons, {vertices:,} vertices", fontsize=9)
    figure.savefig(options.picture, dpi=110)


if __name__ == "__main__":
    main()
