"""Write the sections of a report as one HTML file."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import IO, TYPE_CHECKING, Any

from segkit.io.paths import PathLike
from segkit.plots.images import display_name
from segkit.plots.style import to_svg, write_png
from segkit.plots.text import UNDEFINED, format_estimate, format_hectares, format_score
from segkit.reporting.viewer import PixelState, SceneLayers, bokeh_scripts, render_viewer
from segkit.runtime.version import VERSION

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

_IMAGE_DPI = 100
_WEBP_QUALITY_PERCENT = 88
_COLUMNS = {  # {key of a class's score in an evaluation: column heading}
    "iou": "IoU",
    "f1": "F1",
    "precision": "precision",
    "recall": "recall",
    "boundary_iou": "boundary IoU",
    "boundary_f1": "boundary F1",
    "object_precision": "object precision",
    "object_recall": "object recall",
    "object_f1": "object F1",
}
_HEADLINES = {"overall_accuracy": "accuracy", "mean_iou": "mean IoU", "macro_f1": "mean F1", "ece": "calibration error"}
_OTHER_SCORES = {
    "quantity_disagreement": "quantity disagreement",
    "allocation_disagreement": "allocation disagreement",
    "brier": "Brier score",
}


@dataclass(frozen=True)
class Chart:
    """A figure with its file name (without extension) and its caption, which is also the text for screen readers.

    Wide pictures may be images.
    """

    name: str
    figure: Figure | Image
    caption: str

    def write_png(self, file: PathLike | IO[bytes], dpi: float = 200) -> None:
        """Write it as a PNG; an existing file is replaced."""
        from matplotlib.figure import Figure

        if isinstance(self.figure, Figure):
            write_png(self.figure, file, dpi)
        else:
            self.figure.save(file, "PNG")


@dataclass(frozen=True)
class Table:
    """A table of texts, the first of each row its heading."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Parameters
    ----------
    title
        Heading.
    intro
        One or two sentences below the heading.
    facts
        {term: description}.
    scores
        An evaluation, shown as tables.
    tables
        Shown above the pictures.
    worst_scenes
        Rows of the evaluation's ``scenes``, shown as a table.
    areas
        The summary of an estimate, shown as a table.
    charts
        Shown side by side.
    pictures
        Wide images, shown below each other.
    code
        Shown when unfolded.
    """

    title: str
    intro: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    scores: Mapping[str, Any] | None = None
    tables: Sequence[Table] = ()
    worst_scenes: Sequence[Mapping[str, Any]] = ()
    areas: Mapping[str, Any] | None = None
    charts: Sequence[Chart] = ()
    pictures: Sequence[Chart] = ()
    code: str = ""


def render_page(
    title: str, subtitle: str, sections: Sequence[Section], scenes: Sequence[SceneLayers], states: Sequence[PixelState]
) -> str:
    """Return the page as HTML, without references to other files."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "score": format_score,
        "distance": lambda value: UNDEFINED if value is None else f"{value:.1f}",
        "hectares": format_hectares,
        "score_estimate": lambda row, key: format_estimate(format_score, row, key),
        "hectares_estimate": lambda row, key: format_estimate(format_hectares, row, key),
        "display_name": display_name,
        "svg": lambda figure: Markup(to_svg(figure)),  # noqa: S704
        "data_uri": _data_uri,
    }
    template = environment.from_string(files("segkit.reporting").joinpath("page.html").read_text(encoding="utf-8"))
    return template.render(
        title=title,
        subtitle=subtitle,
        sections=sections,
        map=Markup(render_viewer(scenes, states)) if scenes else "",  # noqa: S704
        scripts=Markup(bokeh_scripts()) if scenes else "",  # noqa: S704
        columns=_COLUMNS,
        headlines=_HEADLINES,
        other_scores=_OTHER_SCORES,
        version=VERSION,
    )


def _data_uri(picture: Chart) -> str:
    """Return a figure that is mostly imagery as the data URI of a WebP."""
    from PIL import Image

    png, webp = io.BytesIO(), io.BytesIO()
    picture.write_png(png, _IMAGE_DPI)
    Image.open(png).convert("RGB").save(webp, "WEBP", quality=_WEBP_QUALITY_PERCENT, method=4)
    return f"data:image/webp;base64,{base64.b64encode(webp.getvalue()).decode()}"
