"""`segkit.predict` of scenes in memory: numpy arrays, DataArrays and open rasterio datasets."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Protocol, TypedDict, TypeVar, Unpack, cast, overload

import numpy as np
from numpy.typing import NDArray
from rasterio.io import DatasetReader, DatasetWriter
from rasterio.vrt import WarpedVRT

from segkit.errors import UsageError
from segkit.inference.outputs import NO_PROBABILITY, PROBABILITY_STEPS, OutputRequest
from segkit.inference.prediction import Prediction
from segkit.inference.request import given_imagery
from segkit.inference.summary import describe_counts
from segkit.io.class_table import map_tags
from segkit.io.data_array import data_array_like, data_array_raster, is_data_array
from segkit.io.memory_raster import MemoryRaster, array_raster, dataset_raster
from segkit.io.paths import PathLike
from segkit.io.scene import names_in_files

if TYPE_CHECKING:
    from xarray import DataArray, Dataset

    from segkit.data.applicability import SceneComparison
    from segkit.io.polygons import Polygons
    from segkit.io.scene import Scene
    from segkit.models.ensemble import AnyModel
    from segkit.recipe.imagery import Imagery

_P = ParamSpec("_P")
_R_co = TypeVar("_R_co", covariant=True)
_F = TypeVar("_F")


class MemoryOptions(TypedDict, total=False):
    """Options of `predict_in_memory`."""

    valid: NDArray[Any] | DataArray | None
    band_names: Sequence[str] | None
    aoi: PathLike | None
    aoi_layer: str | None
    nodata: float | Sequence[float] | None
    scale: float | Sequence[float] | None
    offset: float | Sequence[float] | None
    mask: PathLike | None
    mask_preset: str | None
    layers: Mapping[str, PathLike] | None
    tile: int | None
    overlap: int | None
    batch_size: int | None
    precision: str
    device: str
    exact: bool
    tta: str | None
    backend: str | None
    show_progress: bool


class Predict(Protocol[_P, _R_co]):
    """The signatures of `segkit.predict`: of files, and of scenes in memory."""

    @overload
    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> _R_co: ...
    @overload
    def __call__(
        self,
        model: AnyModel | PathLike | Sequence[AnyModel | PathLike],
        scenes: DataArray,
        *,
        probabilities: Literal[False] = False,
        **options: Unpack[MemoryOptions],
    ) -> DataArray: ...
    @overload
    def __call__(
        self,
        model: AnyModel | PathLike | Sequence[AnyModel | PathLike],
        scenes: DataArray,
        *,
        probabilities: Literal[True],
        **options: Unpack[MemoryOptions],
    ) -> Dataset: ...
    @overload
    def __call__(
        self,
        model: AnyModel | PathLike | Sequence[AnyModel | PathLike],
        scenes: NDArray[Any] | DatasetReader,
        *,
        probabilities: bool = False,
        **options: Unpack[MemoryOptions],
    ) -> Prediction: ...


def with_memory_types(function: Callable[_P, _R_co]) -> Predict[_P, _R_co]:
    """Return the function; for type checkers it has the signatures of scenes in memory, too."""
    return cast("Predict[_P, _R_co]", function)


def or_in_memory(function: Callable[_P, _F]) -> Callable[_P, _F]:
    """Let `segkit.predict` take scenes in memory, which go to `predict_in_memory`."""

    @functools.wraps(function)
    def of_either(*args: _P.args, **kwargs: _P.kwargs) -> _F:
        given: Any = args[1] if len(args) > 1 else kwargs.get("scenes")
        if _is_in_memory(given):
            return cast("_F", predict_in_memory(*args, **kwargs))  # type: ignore[arg-type]
        return function(*args, **kwargs)

    return of_either


def _is_in_memory(given: object) -> bool:
    """Return whether a scene is in memory.

    Raises
    ------
    UsageError
        It is an array of another library, or there are several.
    """
    if isinstance(given, (list, tuple)) and any(map(_is_in_memory, given)):
        raise UsageError(
            "several scenes in memory; they are mapped one at a time: [segkit.predict(model, one) for one in scenes]"
        )
    if isinstance(given, (np.ndarray, DatasetReader, DatasetWriter, WarpedVRT)) or is_data_array(given):
        return True
    if hasattr(given, "__array__"):
        raise UsageError(
            f"the scene is a {type(given).__module__}.{type(given).__name__}; give a numpy array "
            "(numpy.asarray(scene)), a DataArray or an open rasterio dataset"
        )
    return False


def predict_in_memory(
    model: AnyModel | PathLike | Sequence[AnyModel | PathLike],
    scenes: NDArray[Any] | DataArray | DatasetReader,
    *of_files: Any,
    probabilities: bool = False,
    valid: NDArray[Any] | DataArray | None = None,
    band_names: Sequence[str] | None = None,
    aoi: PathLike | None = None,
    aoi_layer: str | None = None,
    nodata: float | Sequence[float] | None = None,
    scale: float | Sequence[float] | None = None,
    offset: float | Sequence[float] | None = None,
    mask: PathLike | None = None,
    mask_preset: str | None = None,
    layers: Mapping[str, PathLike] | None = None,
    tile: int | None = None,
    overlap: int | None = None,
    batch_size: int | None = None,
    precision: str = "auto",
    device: str = "auto",
    exact: bool = False,
    tta: str | None = None,
    backend: str | None = None,
    show_progress: bool = False,
    **options_of_files: Any,
) -> Prediction | DataArray | Dataset:
    """Map a scene in memory; the pixels are those of the map of a file with the same pixels.

    Parameters
    ----------
    model
        As for `segkit.predict`.
    scenes
        The scene. A numpy array (bands, rows, columns) holds stored values, as files do; its bands are those of the
        model in the model's order, or have `band_names`. Of a masked array, masked pixels are no data. A DataArray has
        the CRS, the transform, the no-data value and the names of bands that rioxarray gives it; it need not be loaded.
        An open rasterio dataset is read like its file.
    probabilities
        Whether to return the probabilities, too.
    valid
        Pixels that have data, bool (H, W), or numbers of which 0 is no data, as rasterio's `dataset_mask` gives them.
        With it, a quality mask that the recipe expects in a file beside the scene is not needed.
    band_names
        Names of the bands of an array, in its order, by which those of the model are found.
    aoi, aoi_layer, nodata, scale, offset, mask, mask_preset, layers
        As for `segkit.predict`.
    tile, overlap, batch_size, precision, device, exact, tta, backend
        As for `segkit.predict`.
    show_progress
        Show the progress on stderr.

    Returns
    -------
    For a DataArray, the map as a DataArray with its coordinates and CRS; with `probabilities`, a Dataset of
    `land_cover` and `probabilities`. Else a `Prediction`.

    Raises
    ------
    UsageError
        An option is not possible, or the array has not the form of a scene.
    SegkitError
        The scene could not be mapped.
    """
    _refuse_file_options(of_files, options_of_files, probabilities, mask)
    if aoi_layer is not None and aoi is None:
        raise UsageError("aoi_layer is given, but aoi is not; add the file of polygons, or leave aoi_layer out")

    from segkit.inference.arrays import OutputArrays
    from segkit.inference.settings import PredictOptions
    from segkit.inference.streaming import stream_scene
    from segkit.inference.tasks import WorkerContext
    from segkit.io.region import read_aoi
    from segkit.models.ensemble import load_model, with_imagery
    from segkit.recipe.imagery import open_scene

    network = with_imagery(load_model(model), given_imagery(nodata, scale, offset, mask, mask_preset, layers))
    options = PredictOptions(tile, overlap, batch_size, device, precision, exact, tta, backend)
    options.check(network)
    raster, imagery = _open(scenes, network, valid, band_names)
    if valid is not None and mask is None and (quality := imagery.quality_mask) is not None and quality.in_file:
        imagery = imagery.model_copy(update={"mask": None})
    scene = open_scene([raster], imagery, trained=network.band_names)
    network.check_scene(scene)
    polygons = None if aoi is None else read_aoi(aoi, aoi_layer)
    comparison = _warn(network, scene, polygons)
    outputs = (OutputRequest("map"), *([OutputRequest("probabilities")] if probabilities else []))
    context = WorkerContext(network, polygons, show_progress=show_progress)
    arrays, settings = stream_scene(
        lambda: OutputArrays(network.task, scene.grid, outputs), context, scene, options, outputs, stacklevel=4
    )
    counts = describe_counts(arrays.counts, None if comparison is None else comparison.share_outside)
    if not counts["valid"]:
        where = "" if aoi is None else f" inside {aoi}"
        warnings.warn(
            f"{raster}: no pixel is valid{where}, so the map is all no data; check the no-data value and the mask",
            stacklevel=4,
        )
    task = network.task
    values = arrays.values["map"]
    values = values[0] if len(values) == 1 else values
    fractions = _as_fractions(arrays.values["probabilities"]) if probabilities else None
    if is_data_array(scenes):
        return _as_data_arrays(scenes, network, values, fractions)
    del counts["share_is_sampled"]
    return Prediction(map=values, probabilities=fractions, task=task, grid=scene.grid, choice=settings, **counts)


def _refuse_file_options(of_files: Sequence[Any], options: dict[str, Any], probabilities: Any, mask: Any) -> None:
    """Raise a UsageError about what only files can have."""
    given = [*(["output"] if of_files else []), *options]
    if given:
        raise UsageError(
            f"{', '.join(given)}: not for a scene in memory, whose map is returned and not written; leave "
            f"{'it' if len(given) == 1 else 'them'} out, or give the path of the scene"
        )
    if not isinstance(probabilities, bool):
        raise UsageError(
            f"probabilities is {probabilities!r}; of a scene in memory they are returned and not written: give True"
        )
    if mask is not None and not isinstance(mask, (str, Path)):
        raise UsageError("mask is the path of a file of quality bands; give an array of the pixels with data as valid=")


def _open(
    given: NDArray[Any] | DataArray | DatasetReader,
    network: AnyModel,
    valid: NDArray[Any] | DataArray | None,
    band_names: Sequence[str] | None,
) -> tuple[MemoryRaster, Imagery]:
    """Return a scene in memory as a raster, and how it is read.

    Raises
    ------
    UsageError
        The scene has not the form of one, or its bands may be meant in two orders.
    """
    imagery = network.imagery
    formulas = [index.to_formula() for index in imagery.indices]
    trained = names_in_files(network.band_names, formulas, imagery.covering_layers) or ()
    if is_data_array(given):
        numbers = [one for one in imagery.bands or range(1, len(trained) + 1) if isinstance(one, int)]
        quality = imagery.quality_mask
        by_number = len(numbers) == len(trained) and (quality is None or quality.in_file)
        raster = data_array_raster(
            given,
            valid=valid,
            band_names=band_names,
            numbered=numbers if by_number else (),
            from_more=imagery.bands is not None,
        )
    elif isinstance(given, np.ndarray):
        raster = array_raster(given, valid=valid, band_names=band_names)
    else:
        if valid is not None or band_names is not None:
            raise UsageError(
                "valid and band_names are for arrays; an open dataset has a mask and names of its own: read it "
                "(dataset.read()) to give others"
            )
        return dataset_raster(given), imagery
    with raster.open_dataset(vrt=None) as dataset:
        count, names = dataset.count, dataset.descriptions
        in_order = [*(band_names or ())] == [*trained]
    if count == len(trained) and (in_order or not any(names)):
        if isinstance(given, np.ndarray) and not in_order:
            _refuse_other_order(imagery.bands, trained)
        imagery = imagery.model_copy(update={"bands": None, "band_names": None})
    return raster, imagery


def _refuse_other_order(bands: Sequence[int | str] | None, trained: Sequence[str]) -> None:
    """Raise a UsageError if the bands of an array may be those of a file, which the model reads in another order."""
    in_file = list(range(1, len(trained) + 1))
    if bands is not None and [*bands] != in_file and {*bands} == {*in_file}:
        raise UsageError(
            f"the model reads the bands {', '.join(map(str, bands))} of its files in this order, and the array has as "
            "many bands, so it may be in either order; put its bands into the order of the model and say so: "
            f"band_names={[*trained]}"
        )


def _warn(network: AnyModel, scene: Scene, polygons: Polygons | None) -> SceneComparison | None:
    """Warn as for files: of other units, bands and appearance; return the comparison with the training data."""
    from segkit.data.applicability import compare_with_model, describe_unlike_scenes
    from segkit.data.band_warnings import describe_alpha_bands, describe_unmatched_bands
    from segkit.io.region import PolygonRegion

    if polygons is not None:
        polygons.warn_of_repairs()
    comparison = compare_with_model(network, scene, None if polygons is None else PolygonRegion(polygons, scene.grid))
    fixed = network.fixed_window_size
    for warning in (
        None
        if fixed is None
        else f"the network pools over its whole window, so it gets windows of {fixed} pixels as in training, and "
        "classes may differ where two windows meet",
        *describe_alpha_bands([scene]),
        describe_unmatched_bands(network.band_names, [scene]),
        describe_unlike_scenes([] if comparison is None else [comparison]),
    ):
        if warning is not None:
            warnings.warn(warning, stacklevel=5)
    return comparison


def _as_fractions(stored: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return stored probabilities as float32 from 0 to 1, NaN where there is no data."""
    fractions = stored.astype(np.float32)
    fractions /= np.float32(PROBABILITY_STEPS)
    fractions[stored == NO_PROBABILITY] = np.nan
    return fractions


def _as_data_arrays(
    like: DataArray, network: AnyModel, values: NDArray[Any], probabilities: NDArray[np.float32] | None
) -> DataArray | Dataset:
    """Return map, or map and probabilities, on the grid of the scene."""
    task = network.task
    tags = map_tags(task.type, task.legend)
    made = data_array_like(like, values, "land_cover", nodata=task.nodata, band_names=task.band_names, attributes=tags)
    if probabilities is None:
        return made
    names = task.channel_names
    fractions = data_array_like(
        like, probabilities, "probabilities", nodata=float("nan"), band_names=names, attributes={}
    )
    from xarray import Dataset

    return Dataset({"land_cover": made, "probabilities": fractions})
