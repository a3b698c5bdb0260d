"""Numbers and names as text, for charts, reports and tables.

Undefined values (None or NaN) are written as "-".
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence

import numpy as np

from segkit.plots.images import display_name
from segkit.plots.style import text_inches

UNDEFINED = "-"
MAX_NAME_INCHES = 1.4  # maximum width of a class name in a chart
_MIN_ABBREVIATED_HECTARES = 1e7  # from here on hectares are written in millions


def nan_if_none(value: float | None) -> float:
    """Return a value for drawing; NaN for None."""
    return math.nan if value is None else float(value)


def text_color(color: Sequence[float]) -> str:
    """Return black or white, whichever has the higher contrast to a colour (WCAG 2.2)."""
    rgb = np.array(color[:3])
    luminance = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)
    return "black" if (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) else "white"


def format_short(value: float) -> str:
    """Format a number with three significant digits: 987, 12.3 k, 4.5 M."""
    value = float(f"{value:.3g}")
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def format_hectares(value: float | None) -> str:
    """Format hectares: three significant digits below 100, whole hectares below 10 million, then millions."""
    hectares = nan_if_none(value)
    if math.isnan(hectares):
        return UNDEFINED
    if abs(hectares) >= _MIN_ABBREVIATED_HECTARES:
        return format_short(hectares)
    return f"{hectares:,.0f}" if abs(hectares) >= 100 else f"{hectares:.3g}"


def format_score(value: float | None) -> str:
    """Format a score in 0..1 with three decimals."""
    score = nan_if_none(value)
    return UNDEFINED if math.isnan(score) else f"{score:.3f}"


def format_with_error(form: Callable[[float | None], str], value: float | None, error: float | None) -> str:
    """Format a value and the half-width of its interval: "0.912 ± 0.034", "0.912 ± ?" if only the value is defined."""
    value, error = nan_if_none(value), nan_if_none(error)
    if math.isnan(value):
        return UNDEFINED
    if math.isnan(error):
        return f"{form(value)} ± ?"
    if form is format_hectares and abs(value) >= _MIN_ABBREVIATED_HECTARES:
        return f"{format_short(value)} ± {format_short(error)}"  # both in millions
    return f"{form(value)} ± {form(error)}"


def format_percent(share: float | None) -> str:
    """Format a share with one decimal; only exactly 0 and 1 are written as 0 % and 100 %."""
    share = nan_if_none(share)
    if math.isnan(share):
        return UNDEFINED
    if share in (0, 1):
        return f"{100 * share:.0f} %"
    return "< 0.1 %" if share < 0.0005 else "> 99.9 %" if share > 0.9995 else f"{100 * share:.1f} %"


def format_cell_percent(share: float) -> str:
    """Format a share for a small cell: a whole number of percent, "·" below 0.5 %, nothing for 0."""
    return "" if not share else "·" if share < 0.005 else f"{100 * share:.0f}"


def _printable_line(name: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in display_name(name)).split())


def wrap_name(name: str, inches: float = MAX_NAME_INCHES) -> str:
    """Return a class name in up to three lines of at most this width."""
    text = _printable_line(name)
    for width in range(24, 3, -2):
        lines = textwrap.wrap(text, width, max_lines=3, placeholder=" …")
        if text_inches(lines) <= inches:
            break
    return "\n".join(lines)


def shorten_name(name: str, inches: float) -> str:
    """Return a class name in one line; if it is too wide its middle is left out, since names often start alike."""
    text = short = _printable_line(name)
    left, right = text[: len(text) // 2], text[len(text) // 2 :]
    while text_inches([short]) > inches:
        left, right = (left[:-1], right) if len(left) >= len(right) else (left, right[1:])
        short = f"{left.rstrip()}…{right.lstrip()}"
    return short
