"""Numbers and names as charts write them."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence

import numpy as np

from segkit.plots.images import spoken
from segkit.plots.style import text_inches

NAME_INCHES = 1.4  # inches that a name takes at most
_MANY_HECTARES = 1e7  # are written in millions


def as_number(value: float | None) -> float:
    """Return a value for drawing; NaN for none."""
    return math.nan if value is None else float(value)


def text_color(color: Sequence[float]) -> str:
    """Return black or white, whichever has more contrast against a colour (WCAG 2.2)."""
    rgb = np.array(color[:3])
    light = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)
    return "black" if (light + 0.05) / 0.05 >= 1.05 / (light + 0.05) else "white"


def format_short(value: float) -> str:
    """Write a number with three digits: 987, 12.3 k, 4.5 M."""
    value = float(f"{value:.3g}")
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def format_hectares(value: float) -> str:
    """Write hectares, or square kilometres if there are very many."""
    if math.isnan(value):
        return "-"
    if abs(value) >= _MANY_HECTARES:
        return format_short(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def format_score(value: float | None) -> str:
    """Write a score with three digits; a dash for none."""
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def format_with_error(form: Callable[[float], str], value: float, error: float) -> str:
    """Write a value and its error bar."""
    if form is format_hectares and abs(value) >= _MANY_HECTARES:
        form = format_short  # the error in the unit of the value
    return form(value) if math.isnan(error) else f"{form(value)} ± {form(error)}"


def format_percent(share: float) -> str:
    """Write a share with one decimal; what is not all or nothing does not look so."""
    if share in (0, 1):
        return f"{100 * share:.0f} %"
    return "< 0.1 %" if share < 0.0005 else "> 99.9 %" if share > 0.9995 else f"{100 * share:.1f} %"


def format_rounded(share: float) -> str:
    """Write a share in whole percent, hardly any as a dot, and nothing as nothing."""
    return "" if not share else "·" if share < 0.005 else f"{100 * share:.0f}"


def _one_line(name: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in spoken(name)).split())


def wrap_name(name: str, inches: float = NAME_INCHES) -> str:
    """Write a class's name in up to three lines that are not wider."""
    text = _one_line(name)
    for width in range(24, 3, -2):
        lines = textwrap.wrap(text, width, max_lines=3, placeholder=" …")
        if text_inches(lines) <= inches:
            break
    return "\n".join(lines)


def shorten_name(name: str, inches: float) -> str:
    """Write a class's name in one line, without its middle where it is too wide: names often begin alike."""
    text = short = _one_line(name)
    left, right = text[: len(text) // 2], text[len(text) // 2 :]
    while text_inches([short]) > inches:
        left, right = (left[:-1], right) if len(left) >= len(right) else (left, right[1:])
        short = f"{left.rstrip()}…{right.lstrip()}"
    return short
