"""Default colours of classes: those of their names (water is blue), and a palette for all others."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Words at the start of which a class is recognised, and its colours: the second class of a row gets the second one.
# Rows are in the order in which they are tried, so "burned forest" is burned and "forest loss" is cleared.
_COLORS_OF_WORDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("deforest clear fell logg loss degrad", ("#d7301f", "#fc8d59", "#7f0000")),
    ("burn fire", ("#4d1a00", "#993404")),
    ("cloud", ("#bdbdbd", "#969696")),
    ("shadow", ("#525252",)),
    ("snow ice glacier", ("#e0f3f8", "#c6dbef")),
    ("mangrove", ("#01665e",)),
    ("wetland marsh swamp bog peat flood", ("#5ab4ac", "#80cdc1", "#35978f")),
    ("water river lake sea ocean pond reservoir stream agua água eau wasser", ("#2b83ba", "#74add1", "#08519c")),
    ("shrub bush scrub heath", ("#a6a04b", "#c9c46f")),
    ("orchard vine plantation palm", ("#9e5fa8", "#c994c7")),
    ("pasture grass meadow herb savanna prairie rangeland", ("#a6d96a", "#d9ef8b", "#66bd63")),
    ("forest tree wood canopy conifer decid broadle floresta bosque forêt wald", ("#1b7837", "#5aae61", "#00441b")),
    ("crop field agri arable farm cultiv cereal", ("#f6c244", "#fee08b", "#d8a21b")),
    ("road street paved asphalt rail", ("#7f7f7f", "#636363")),
    ("urban built build settle city town village artific imperv resid industr roof house", ("#c0392b", "#e7969c")),
    ("bare barren sand rock soil beach mine desert", ("#bf812d", "#dfc27d", "#8c510a")),
)
# Okabe and Ito's colours, safe for colour-blind readers (https://jfly.uni-koeln.de/color/), then Tol's muted scheme.
_PALETTE = (
    *("#d55e00", "#0072b2", "#009e73", "#e69f00", "#56b4e9", "#cc79a7", "#f0e442"),
    *("#332288", "#88ccee", "#117733", "#999933", "#ddcc77", "#882255", "#aa4499", "#44aa99"),
)
_NEGATION = re.compile(r"\b(no|non|not|without|other)\b")


def default_colors(names: Sequence[str], given: Sequence[str | None] = ()) -> list[str]:
    """Return a colour "#rrggbb" for each class; no two are equal as long as there are colours.

    Parameters
    ----------
    names
        Of the classes, in their order.
    given
        The colours that classes have already, None for those without; by default none has one.
    """
    found = list(given) or [None] * len(names)
    used = {color.lower() for color in found if color}
    for position, name in enumerate(names):
        if found[position] is None:
            wanted = [*_colors_of(name), *_PALETTE[position % len(_PALETTE) :], *_PALETTE]
            found[position] = next((color for color in wanted if color not in used), wanted[0])
            used.add(str(found[position]))
    return [str(color) for color in found]


def _colors_of(name: str) -> tuple[str, ...]:
    """Return the colours that the words of a class's name ask for; none if they say what it is not."""
    text = re.sub(r"[\W_]+", " ", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)).lower()
    if _NEGATION.search(text):
        return ()
    rows = (colors for words, colors in _COLORS_OF_WORDS if re.search(rf"\b({words.replace(' ', '|')})", text))
    return next(rows, ())
