"""A folder with small inputs of all commands, the commands, and limits of the system under which they run."""

import contextlib
import os
import resource
import shutil
import subprocess
from pathlib import Path

import numpy as np
import yaml
from exported import classical
from fault_cases import codes, zones
from labelling import label, truth_polygons
from maps import write_map
from synthetic import recipe_for, write_pair

from segkit.labelling.suggestion import suggest

MODEL = "model.safetensors"
FAST = ("--tile", "32", "--overlap", "8", "--precision", "fp32", "--device", "cpu")
NAMES = ("--class-names", "names.csv")
# Commands that write, by a name; outputs are in `out/`.
WRITING = {
    "predict": ("predict", MODEL, "images/a.tif", "-o", "out/map.tif", "--probabilities", "out/p.tif", *FAST),
    "vectorize gpkg": ("vectorize", "map.tif", "out/v.gpkg", *NAMES),
    "vectorize shp": ("vectorize", "map.tif", "out/v.shp", *NAMES),
    "vectorize parquet": ("vectorize", "map.tif", "out/v.parquet", *NAMES),
    "clean": ("clean", "map.tif", "out/cleaned.tif", "--min-area", "70px", *NAMES),
    "change": ("change", "old.tif", "map.tif", "-o", "out/change.tif", "--table", "out/change.csv", *NAMES),
    "reclassify map": ("reclassify", "map.tif", "out/new.tif", "--merge", "land=3,9"),
    "reclassify model": ("reclassify", MODEL, "out/new.safetensors", "--rename", "cleared=new"),
    "areas csv": ("areas", "map.tif", "zones.gpkg", "--by", "name", "-o", "out/areas.csv", *NAMES),
    "areas xlsx": ("areas", "map.tif", "zones.gpkg", "--by", "name", "-o", "out/areas.xlsx", *NAMES),
    "evaluate": ("evaluate", "map.tif", "--labels", "old.tif", "-o", "out/scores.json", *NAMES),
    "assess design": (
        "assess", "design", "map.tif", "-n", "60", "--min-per-stratum", "5", "-o", "out/p.gpkg", *NAMES,
    ),
    "assess estimate": ("assess", "estimate", "map.tif", "counts.csv", "-o", "out/e.json", "-o", "out/e.csv", *NAMES),
    "suggest": ("suggest", MODEL, "images/a.tif", "-n", "2", "--size", "16px", "-o", "out/todo.gpkg", *FAST),
    "labels": ("labels", "done.gpkg", "-o", "out/labels.gpkg"),
    "report": ("report", "map.tif", "-o", "out/r.html", *NAMES),
    "init": ("init", "images", "labels", "-o", "out/r.yaml"),
    "info": ("info", MODEL, "--stac", "out/m.json"),
    "train": ("train", "recipe.yaml", "-o", "out/run"),
    "compare": ("compare", "recipe.yaml", "-o", "out/compared", "--vary", "data.val.seed=0,1", "--seeds", "0"),
    "export": ("export", MODEL, "-o", "out/model.pt2"),
    "audit": ("audit", "recipe.yaml", "-o", "out/audited", "--learner", "lda", "--folds", "2"),
}  # fmt: skip

# What commands keep so that they can be continued; of a training these are whole files, too.
KEPT = ("map.tif.bands", "run", "compared")


def write_place(folder):
    """Write the inputs of all commands."""
    for seed, name in enumerate("ab"):
        write_pair(folder, "binary", name, seed=seed)
    raw = recipe_for(folder, "binary").to_dict()
    raw["data"]["train"] = {"images": "images", "labels": "labels"}
    raw |= {"model": {"architecture": "lda"}, "train": {}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    classical(folder).save(folder / MODEL)
    write_map(folder / "map.tif", codes())
    write_map(folder / "old.tif", codes()[::-1].copy())
    (folder / "names.csv").write_text("value,name,background\n0,rest,yes\n3,water,no\n9,forest,no\n")
    (folder / "counts.csv").write_text("map,rest,water,forest\nrest,40,3,1\nwater,2,30,2\nforest,1,2,20\n")
    zones().to_file(folder / "zones.gpkg")
    suggest(folder / MODEL, [folder / "images" / "a.tif"], folder / "done.gpkg", number=2, size="16px")
    label(folder / "done.gpkg", truth_polygons(folder / "labels" / "a.tif", {7: "cleared"}))
    (folder / "out").mkdir()
    return folder


def inputs(place):
    """Return {path: content} of the inputs."""
    return {path: path.read_bytes() for path in place.rglob("*") if path.is_file() and "out" not in path.parts}


def empty(folder):
    """Remove all that is in a folder."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def limited(kind, value):
    """Set a soft limit of this process during the block."""
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


@contextlib.contextmanager
def small_disk(folder, kibibytes):
    """Mount an empty file system of a size on a folder during the block; false if this process may not."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", folder]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", folder], check=True)


def fill(folder, left):
    """Fill the disk of a folder with a file but for some bytes, in whole pages; return the file."""
    path = Path(folder, "filler")
    facts = os.statvfs(folder)
    path.write_bytes(np.zeros(max(0, facts.f_bavail * facts.f_bsize - int(left)), np.uint8).tobytes())
    return path


def used(folder):
    """Return how many bytes are used on the disk of a folder."""
    facts = os.statvfs(folder)
    return (facts.f_blocks - facts.f_bfree) * facts.f_bsize
