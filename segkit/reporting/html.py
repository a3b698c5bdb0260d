"""Page: what is told in a report, written as one file of HTML."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from segkit.plots.images import spoken
from segkit.plots.style import png, svg
from segkit.reporting.viewer import Scenery, State, scripts, viewer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NONE = "\N{EN DASH}"
_PICTURE_DPI = 100
_PICTURE_QUALITY = 88
# Of a class: the key in an evaluation, and what the column is called.
_COLUMNS = {
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
_TOLD = {
    "quantity_disagreement": "quantity disagreement",
    "allocation_disagreement": "allocation disagreement",
    "brier": "Brier score",
}


@dataclass(frozen=True)
class Chart:
    """A figure, what it is called as a file, and what it shows, for who cannot see it and as its caption."""

    name: str
    figure: Figure
    caption: str


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Parameters
    ----------
    title
        Its heading.
    intro
        What a reader has to know, in a sentence or two.
    facts
        Terms and what is said of them.
    scores
        An evaluation, which is shown as tables.
    areas
        An estimate's summary, which is shown as a table.
    charts
        Shown beside each other.
    pictures
        Wide ones, below each other.
    code
        Shown on demand.
    """

    title: str
    intro: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    scores: Mapping[str, Any] | None = None
    areas: Mapping[str, Any] | None = None
    charts: Sequence[Chart] = ()
    pictures: Sequence[Chart] = ()
    code: str = ""


def render(
    title: str, subtitle: str, sections: Sequence[Section], scenes: Sequence[Scenery], states: Sequence[State]
) -> str:
    """Write the page; it needs nothing but itself."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "score": _score,
        "hectares": _hectares,
        "half": _half,
        "spoken": spoken,
        "svg": lambda figure: Markup(svg(figure)),  # noqa: S704
        "picture": _picture,
    }
    template = environment.from_string(files("segkit.reporting").joinpath("page.html").read_text(encoding="utf-8"))
    return template.render(
        title=title,
        subtitle=subtitle,
        sections=sections,
        map=Markup(viewer(scenes, states)) if scenes else "",  # noqa: S704
        scripts=Markup(scripts()) if scenes else "",  # noqa: S704
        columns=_COLUMNS,
        headlines=_HEADLINES,
        told=_TOLD,
        version=version("segkit"),
    )


def _score(value: float | None) -> str:
    return _NONE if value is None else f"{value:.3f}"


def _hectares(value: float | None) -> str:
    if value is None:
        return _NONE
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.1f}" if abs(value) >= 10 else f"{value:,.2f}"


def _half(value: float | None) -> str:
    """Half an interval, which a stratum with one sample does not have."""
    return "± ?" if value is None else f"± {_hectares(value) if value >= 1 else f'{value:.3f}'}"


def _picture(figure: Figure) -> str:
    """Draw a figure that is mostly imagery as a data URI."""
    from PIL import Image

    drawn, packed = io.BytesIO(), io.BytesIO()
    png(figure, drawn, dpi=_PICTURE_DPI)
    Image.open(drawn).convert("RGB").save(packed, "WEBP", quality=_PICTURE_QUALITY, method=4)
    return f"data:image/webp;base64,{base64.b64encode(packed.getvalue()).decode()}"
