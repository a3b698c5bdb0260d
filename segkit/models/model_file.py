"""The header of a model file: what a model is told by before its weights are read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from segkit.errors import ModelFileError
from segkit.io.files import existing
from segkit.io.raster import PathLike
from segkit.models.calibration import Calibration
from segkit.models.network import first_line

_FORMAT = 1  # of the header; a reader refuses what is newer
HEADER_KEY = "segkit"  # the one entry of the safetensors metadata
GLOBAL: Literal["global"] = "global"  # the reach of a network that looks at all of its window


@dataclass(frozen=True)
class Header:
    """What a model file says about itself; all but the weights.

    Parameters
    ----------
    recipe
        As `Recipe.to_dict` gives it: the task with its classes and thresholds, the bands, the network, the training.
    mean, std
        Of each input band over valid training pixels, in the files' own units.
    band_names
        Of the imagery it was trained on.
    metrics
        On the validation data, as in `metrics.json`; empty before the first evaluation.
    versions
        Of segkit and of the libraries that trained it.
    created
        UTC, ISO 8601.
    format
        Of this header.
    reach
        As `Segmenter.reach`, "global" where that is None; None where it was not measured.
    calibration
        What the network's logits are scaled and shifted by; None where they are not.
    """

    recipe: dict[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    band_names: tuple[str, ...]
    metrics: dict[str, Any]
    versions: dict[str, str]
    created: str
    format: int = _FORMAT
    reach: int | Literal["global"] | None = None
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be a reach."""
        if not (self.reach in (None, GLOBAL) or (isinstance(self.reach, int) and self.reach >= 0)):
            raise ValueError(f"reach is {self.reach!r}, not a number of pixels or {GLOBAL!r}")


def read_header(path: PathLike) -> Header:
    """Read what a model file says about itself, without its weights.

    Raises
    ------
    MissingFileError, ModelFileError
        The file is missing, damaged, or no segkit model.
    """
    file = existing(path, "model file")
    if file.is_dir():
        raise ModelFileError(f"{file} is a folder; name the model file in it (model.safetensors)")
    try:
        with safe_open(file, framework="pt") as stored:
            text = (stored.metadata() or {}).get(HEADER_KEY)
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{file}: not a model file (.safetensors), or damaged: {error}") from error
    if text is None:
        raise ModelFileError(
            f"{file}: a safetensors file, but not one that segkit train wrote: its header has no recipe"
        )
    try:
        fields = dict(json.loads(text))
        found = fields.get("format")
        if found == _FORMAT:
            told: dict[str, Any] = {name: tuple(fields[name]) for name in ("mean", "std", "band_names")}
            if fields.get("calibration") is not None:
                told["calibration"] = Calibration(**{key: tuple(row) for key, row in fields["calibration"].items()})
            return Header(**fields | told)
    except (ValueError, TypeError, KeyError) as error:
        raise ModelFileError(f"{file}: its header is damaged: {first_line(error)}") from error
    raise ModelFileError(
        f"{file}: its header has format {found}, this segkit {version('segkit')} reads {_FORMAT}; update segkit"
    )
