"""Options and arguments that several commands have."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Device(StrEnum):
    """Where networks run."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Precision(StrEnum):
    """In which numbers networks run."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"


class Augmentation(StrEnum):
    """Test-time augmentation."""

    D4 = "d4"


class Allocation(StrEnum):
    """How a sample is divided among strata."""

    PROPORTIONAL = "proportional"
    EQUAL = "equal"
    NEYMAN = "neyman"


class NoData(StrEnum):
    """What label pixels are whose value is a code and declared as no data."""

    CODE = "code"
    IGNORE = "ignore"


class DemoTask(StrEnum):
    """Tasks of the sample landscape."""

    DEFORESTATION = "deforestation"
    LANDCOVER = "landcover"
    OVERLAPPING = "overlapping"


RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe (.yaml).")]
ModelFile = Annotated[Path, typer.Argument(metavar="MODEL", help="Model file (.safetensors).")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key: train.epochs=3. May be repeated.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace outputs that are there.")]
Force = Annotated[bool, typer.Option("--force", help="Train in spite of what check calls a problem.")]
LabelNoData = Annotated[
    NoData | None,
    typer.Option(
        "--nodata", help="Label pixels of a class's value that is declared as no data: this code, or unknown."
    ),
]
Tile = Annotated[int | None, typer.Option(help="Side of the windows that the network sees at most, in pixels.")]
Overlap = Annotated[int | None, typer.Option(help="Pixels that neighbouring windows share at least.")]
OnDevice = Annotated[Device, typer.Option(help="Where to compute.")]
InPrecision = Annotated[Precision, typer.Option(help="bf16 is faster where the hardware has it.")]
