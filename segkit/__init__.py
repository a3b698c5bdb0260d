"""segkit: land-cover maps from GeoTIFFs, from the first tile to the polygons.

Every name here is loaded on first use, so that ``import segkit`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from segkit.runtime.extras import describe_missing_package
from segkit.runtime.version import VERSION

if TYPE_CHECKING:
    from segkit import assess as assess
    from segkit import plot as plot
    from segkit.auditing.label_audit import audit as audit
    from segkit.data.check import check as check
    from segkit.data.drafting.draft import init as init
    from segkit.errors import SegkitError as SegkitError
    from segkit.evaluation.evaluate import evaluate as evaluate
    from segkit.exporting.write import export as export
    from segkit.inference.forecasting import forecast as forecast
    from segkit.inference.predict import predict as predict
    from segkit.io.mosaic import Mosaic as Mosaic
    from segkit.labelling.collection import labels as labels
    from segkit.labelling.suggestion import suggest as suggest
    from segkit.maps.change import change as change
    from segkit.maps.cleaning import clean as clean
    from segkit.maps.zonal_areas import areas as areas
    from segkit.models.catalogue import encoders as encoders
    from segkit.models.reclassification import reclassify as reclassify
    from segkit.models.segmenter import Segmenter as Segmenter
    from segkit.models.segmenter import load as load
    from segkit.recipe import Recipe as Recipe
    from segkit.reporting.file_info import info as info
    from segkit.reporting.report import report as report
    from segkit.task import LandCoverClass as LandCoverClass
    from segkit.task import Task as Task
    from segkit.training.compare import compare as compare
    from segkit.training.cross_validation import cross_validate as cross_validate
    from segkit.training.finishing import finish as finish
    from segkit.training.torch_data import datasets as datasets
    from segkit.training.train import train as train
    from segkit.vector import polygons as polygons
    from segkit.vector import vectorize as vectorize

# The public names: the module of each. `assess` is a package of its own, `plot` a module.
_HOMES = {
    "LandCoverClass": "segkit.task",
    "Mosaic": "segkit.io.mosaic",
    "Recipe": "segkit.recipe",
    "SegkitError": "segkit.errors",
    "Segmenter": "segkit.models.segmenter",
    "Task": "segkit.task",
    "areas": "segkit.maps.zonal_areas",
    "assess": "segkit.assess",
    "audit": "segkit.auditing.label_audit",
    "change": "segkit.maps.change",
    "check": "segkit.data.check",
    "clean": "segkit.maps.cleaning",
    "compare": "segkit.training.compare",
    "cross_validate": "segkit.training.cross_validation",
    "datasets": "segkit.training.torch_data",
    "encoders": "segkit.models.catalogue",
    "evaluate": "segkit.evaluation.evaluate",
    "export": "segkit.exporting.write",
    "finish": "segkit.training.finishing",
    "forecast": "segkit.inference.forecasting",
    "info": "segkit.reporting.file_info",
    "init": "segkit.data.drafting.draft",
    "labels": "segkit.labelling.collection",
    "load": "segkit.models.segmenter",
    "plot": "segkit.plot",
    "polygons": "segkit.vector",
    "predict": "segkit.inference.predict",
    "reclassify": "segkit.models.reclassification",
    "report": "segkit.reporting.report",
    "suggest": "segkit.labelling.suggestion",
    "train": "segkit.training.train",
    "vectorize": "segkit.vector",
}

_RENAMED = {"LandClass": "segkit.task"}  # kept for one release; their modules warn

__version__ = VERSION
__all__ = ["__version__", *_HOMES]  # noqa: PLE0604 - strings, by the annotation of _HOMES


def __getattr__(name: str) -> Any:
    """Load a public name on first use (PEP 562)."""
    if name not in _HOMES and name not in _RENAMED:
        raise AttributeError(f"module 'segkit' has no attribute {name!r}")
    try:
        home = import_module((_HOMES | _RENAMED)[name])
    except ModuleNotFoundError as error:
        message = describe_missing_package(error)
        if message is None:
            raise
        raise ModuleNotFoundError(f"segkit.{name}: {message}", name=error.name) from error
    return getattr(home, name, home)


def __dir__() -> list[str]:
    return __all__
