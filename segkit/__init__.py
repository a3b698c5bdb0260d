"""segkit: land-cover maps from GeoTIFFs, from the first tile to the polygons.

Every name here is loaded on first use, so that ``import segkit`` costs nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import version
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segkit import assess as assess
    from segkit.change import change as change
    from segkit.check import check as check
    from segkit.compare import compare as compare
    from segkit.errors import SegkitError as SegkitError
    from segkit.evaluate import evaluate as evaluate
    from segkit.model import Segmenter as Segmenter
    from segkit.model import load as load
    from segkit.predict import predict as predict
    from segkit.recipe import Recipe as Recipe
    from segkit.report import report as report
    from segkit.task import LandClass as LandClass
    from segkit.task import Task as Task
    from segkit.train import train as train
    from segkit.vector import vectorize as vectorize

# The public surface: where each name lives. `assess` is a package of its own.
_HOMES = {
    "LandClass": "segkit.task",
    "Recipe": "segkit.recipe",
    "SegkitError": "segkit.errors",
    "Segmenter": "segkit.model",
    "Task": "segkit.task",
    "assess": "segkit.assess",
    "change": "segkit.change",
    "check": "segkit.check",
    "compare": "segkit.compare",
    "evaluate": "segkit.evaluate",
    "load": "segkit.model",
    "predict": "segkit.predict",
    "report": "segkit.report",
    "train": "segkit.train",
    "vectorize": "segkit.vector",
}

__version__ = version("segkit")
__all__ = ["__version__", *_HOMES]


class _Public:
    """A name of the public surface, which stays what it is when a module of the same name is imported."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, package: ModuleType, _: type) -> Any:
        home = import_module(_HOMES[self._name])
        return getattr(home, self._name, home)

    def __set__(self, package: ModuleType, module: object) -> None:
        """Importing ``segkit.train`` would put the module in the function's place."""


class _Package(ModuleType):
    def __dir__(self) -> list[str]:
        return __all__


for _name in _HOMES:
    setattr(_Package, _name, _Public(_name))
sys.modules[__name__].__class__ = _Package
