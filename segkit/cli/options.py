"""Options and arguments that several commands have."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Device(StrEnum):
    """Device that computes."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    MPS = "mps"


class Precision(StrEnum):
    """Floating-point precision of the network."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"


class Backend(StrEnum):
    """What computes the network."""

    AUTO = "auto"
    TORCH = "torch"
    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"


class Quantize(StrEnum):
    """Integers in which an exported network computes."""

    INT8 = "int8"


class Augmentation(StrEnum):
    """Test-time augmentation."""

    D4 = "d4"


class ReadErrors(StrEnum):
    """What a block of a scene that cannot be read is."""

    FAIL = "fail"
    NODATA = "nodata"


class Uncertainty(StrEnum):
    """Measures of uncertainty."""

    ENTROPY = "entropy"
    MARGIN = "margin"
    DISAGREEMENT = "disagreement"


class Allocation(StrEnum):
    """How a sample is allocated to strata."""

    PROPORTIONAL = "proportional"
    EQUAL = "equal"
    NEYMAN = "neyman"


class SplitCriterion(StrEnum):
    """By what touching objects are split."""

    SHAPE = "shape"
    PROBABILITIES = "probabilities"


class Attribute(StrEnum):
    """Attributes of polygons that are added on request; see `segkit.vector.batch.ATTRIBUTES`."""

    CENTROID = "centroid"
    COMPACTNESS = "compactness"


class NoData(StrEnum):
    """Meaning of label pixels whose value is a class code and is also declared as no data."""

    CODE = "code"
    IGNORE = "ignore"


class MaskPreset(StrEnum):
    """Quality masks whose values are known; see `segkit.io.quality_mask.MASK_PRESETS`."""

    SENTINEL2_SCL = "sentinel2_scl"
    LANDSAT_QA_PIXEL = "landsat_qa_pixel"
    PLANET_UDM2 = "planet_udm2"
    FMASK = "fmask"


class DemoTask(StrEnum):
    """Tasks of the sample landscape."""

    DEFORESTATION = "deforestation"
    LANDCOVER = "landcover"
    OVERLAPPING = "overlapping"


RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe (.yaml).")]
AverageWith = Annotated[
    list[Path] | None,
    typer.Option("--average-with", metavar="MODEL", help="Average its probabilities with MODEL's. Repeatable."),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a key of the recipe: train.epochs=3. Repeatable."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing outputs.")]
Force = Annotated[bool, typer.Option("--force", help="Train although check finds problems.")]
LabelNoData = Annotated[
    NoData | None,
    typer.Option("--nodata", help="If labels declare a class code as no data: take it as that class, or ignore it."),
]
SceneNoData = Annotated[
    list[float] | None,
    typer.Option(
        "--nodata",
        metavar="VALUE",
        help="Value that means no data in the scenes, if they do not declare it. Repeatable.",
    ),
]
ImageNoData = Annotated[
    list[float] | None,
    typer.Option(
        "--image-nodata", metavar="VALUE", help="Value that means no data in the images, if undeclared. Repeatable."
    ),
]
Scale = Annotated[
    list[float] | None,
    typer.Option(
        "--scale", metavar="NUMBER", help="Units of the scenes: value = stored * scale + offset. Repeat for each band."
    ),
]
Offset = Annotated[
    list[float] | None,
    typer.Option("--offset", metavar="NUMBER", help="Offset of the units, see --scale. Repeat for each band."),
]
MaskFile = Annotated[
    str | None,
    typer.Option("--mask", metavar="PATH", help="Quality mask of the scene; {name}: the scene's name in the path."),
]
MaskMeaning = Annotated[
    MaskPreset | None, typer.Option("--mask-preset", help="What the values of the quality mask mean.")
]
LayerFiles = Annotated[
    list[str] | None,
    typer.Option("--layer", metavar="NAME=PATH", help="Another file for a layer of the model: elevation=dem.tif."),
]
Tile = Annotated[int | None, typer.Option(metavar="PIXELS", help="Maximum window size (default: automatic).")]
Overlap = Annotated[
    int | None, typer.Option(metavar="PIXELS", help="Minimum overlap of neighbouring windows (default: automatic).")
]
OnDevice = Annotated[Device, typer.Option(help="Device that computes.")]
InPrecision = Annotated[Precision, typer.Option(help="Precision; bf16 is faster if the hardware supports it.")]
InBackend = Annotated[
    Backend | None,
    typer.Option(help="What computes the network; auto: the fastest here (default: torch; a runtime for .onnx)."),
]
ClassNames = Annotated[
    Path | None,
    typer.Option("--class-names", metavar="FILE.csv", help="Names of the map's classes: columns value, name, color."),
]
MinArea = Annotated[
    str | None, typer.Option("--min-area", metavar="AREA", help="Merge smaller regions into neighbours: 0.5ha, 12px.")
]
FillHoles = Annotated[str | None, typer.Option("--fill-holes", metavar="AREA", help="Fill smaller holes: 0.5ha, 12px.")]
Protect = Annotated[
    list[str] | None,
    typer.Option("--protect", metavar="CLASS", help="Keep all regions of this class, however small. Repeatable."),
]
Regularize = Annotated[
    list[str] | None,
    typer.Option("--regularize", metavar="CLASS", help="Right-angled outlines for this class. Repeatable."),
]
Split = Annotated[
    list[str] | None,
    typer.Option("--split", metavar="CLASS", help="Separate touching objects of this class. Repeatable."),
]
SplitBy = Annotated[
    SplitCriterion | None,
    typer.Option("--split-by", help="Split where objects are narrow, or where --probabilities fall (default: shape)."),
]
SplitDepth = Annotated[
    str | None,
    typer.Option(
        "--split-depth",
        metavar="DEPTH",
        help="How much an object narrows, or its probability falls, where it is split: 2m, 0.2 (default: 1.5px, 0.1).",
    ),
]
BoundaryClass = Annotated[
    str | None,
    typer.Option("--boundary-class", metavar="CLASS", help="Split objects by this class of boundaries between them."),
]
MaxArea = Annotated[
    str | None, typer.Option("--max-area", metavar="AREA", help="Leave out larger polygons: 500ha, 90000px.")
]
MinConfidence = Annotated[
    float | None,
    typer.Option("--min-confidence", metavar="SHARE", help="Leave out polygons with a lower mean_conf, 0 to 1."),
]
Attributes = Annotated[
    list[Attribute] | None,
    typer.Option(
        metavar="centroid|compactness", help="Add columns: centroid_x and centroid_y, or compact. Repeatable."
    ),
]
BoundaryWidth = Annotated[
    str, typer.Option("--boundary-width", metavar="WIDTH", help="Width of the boundary zone: 20m, 2px.")
]
MinObjectArea = Annotated[
    str, typer.Option("--min-object-area", metavar="AREA", help="Smallest object that counts: 0.5ha, 12px.")
]
IgnoredCodes = Annotated[
    list[int] | None,
    typer.Option("--ignore", metavar="CODE", help="For maps: a label code that means unlabelled. Repeatable."),
]
OverlappingClass = Annotated[
    str | None, typer.Option("--class", metavar="NAME", help="The class to use, if classes overlap (multilabel).")
]
LabelField = Annotated[
    str | None, typer.Option("--field", metavar="NAME", help="Field of vector labels that holds the class.")
]
SetLabels = Annotated[
    list[str] | None,
    typer.Option(
        "--set-labels", metavar="KEY=VALUE", help="Set a key of labels as in a recipe: radius=20. Repeatable."
    ),
]
PointsCrs = Annotated[
    str | None,
    typer.Option("--crs", metavar="CRS", help="POINTS is a .csv of points, with coordinates in this CRS: EPSG:4326."),
]
ImageDates = Annotated[
    str | None,
    typer.Option(
        "--dates", metavar="PATTERN", help='Stack the dates of each place, by their names: "{}_{date:%Y%m%d}".'
    ),
]


def parse_layers(given: list[str] | None) -> dict[str, str]:
    """Return {name: path} of NAME=PATH.

    Raises
    ------
    BadParameter
        One is not of this form, or a name is given twice.
    """
    found: dict[str, str] = {}
    for one in given or ():
        name, equals, path = one.partition("=")
        if not (name and equals and path) or name in found:
            why = "is given twice" if name in found else "is not of this form"
            raise typer.BadParameter(f"{one}: {why}; write NAME=PATH, elevation=dem.tif", param_hint="--layer")
        found[name] = path
    return found
