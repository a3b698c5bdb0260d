"""Numbers and names as text, for charts, reports and tables.

Undefined values (None or NaN) are written as "-".
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence

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


def interval_of(summary: Mapping[str, float | None], key: str) -> tuple[float, float]:
    """Return the 95 % interval of an estimate in a summary of `segkit.assess`; NaN if undefined.

    Results of earlier versions have only the half-width of the textbook interval.
    """
    if f"{key}_low95" in summary:
        low, high = (nan_if_none(summary.get(f"{key}_{end}95")) for end in ("low", "high"))
        return low, high
    value, half = nan_if_none(summary.get(key)), nan_if_none(summary.get(f"{key}_ci95"))
    return value - half, value + half


def format_estimate(form: Callable[[float | None], str], summary: Mapping[str, float | None], key: str) -> str:
    """Format a value and its interval: "0.912 (0.861 to 0.948)", "0.912 (?)" if only the value is defined."""
    value, (low, high) = nan_if_none(summary.get(key)), interval_of(summary, key)
    if math.isnan(value):
        return UNDEFINED
    if math.isnan(low + high):
        return f"{form(value)} (?)"
    if form is format_hectares and abs(high) >= _MIN_ABBREVIATED_HECTARES:
        form = _format_millions  # all in the same unit
    return f"{form(value)} ({form(low)} to {form(high)})"


def _format_millions(value: float | None) -> str:
    return f"{nan_if_none(value) / 1e6:.3g} M"


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
