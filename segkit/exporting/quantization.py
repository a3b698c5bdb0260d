"""Int8: an exported network whose inner convolutions compute in integers, calibrated and judged on tiles of scenes."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from rasterio.windows import Window

from segkit.errors import ModelFileError, UsageError
from segkit.inference.scene_files import find_scenes
from segkit.inference.torch_runner import TorchRunner
from segkit.io.files import atomic_write
from segkit.io.paths import PathLike
from segkit.io.scene import Scene, Tile
from segkit.models.graph_outputs import join_outputs
from segkit.models.graph_runtime import INPUT, RUNTIMES, Graph, is_installed, open_graph

if TYPE_CHECKING:
    from segkit.models.ensemble import AnyModel

MIN_AGREEMENT = 0.99  # of int8 with fp32, unless another one is asked for
_TILE_PX, _MAX_TILES = 256, 96
_JUDGED_EVERY = 3  # of three tiles, two calibrate
_QUANTIZED = ("Conv", "MaxPool", "Concat", "Resize", "Add")  # so that integers need not be converted between layers


@dataclass(frozen=True)
class Quantization:
    """How a network computes in integers, and how well.

    Parameters
    ----------
    type
        "int8".
    agreement
        Share of the pixels of held-out tiles with the class of fp32, in the runtime where it is lowest.
    per_class
        The same of the pixels that have each class in fp32; None for a class that no pixel has.
    runtimes
        Agreement in each runtime that was tried.
    calibrated_on, judged_on
        Number of tiles.
    pixels
        Number of valid pixels of the held-out tiles.
    """

    type: str
    agreement: float
    per_class: dict[str, float | None]
    runtimes: dict[str, float]
    calibrated_on: int
    judged_on: int
    pixels: int


class CalibrationTiles:
    """Tiles of scenes: every third one, in the order of scenes, rows and columns, is held out; the others calibrate.

    Scenes are cut into tiles side by side. If they are more than 96, these are spread evenly over all.

    Parameters
    ----------
    scenes
        As for `segkit.predict`.
    side
        Side of the tiles if the network has a fixed one.

    Raises
    ------
    SegkitError
        A scene cannot be read, or does not have the model's bands.
    ModelFileError
        There are fewer than three tiles with valid pixels.
    """

    def __init__(self, model: AnyModel, scenes: PathLike | Sequence[PathLike], side: int | None) -> None:
        self._fixed = side
        opened = [model.open_scene(files) for files in find_scenes(scenes, vrt=False)]
        places = [(scene, window) for scene in opened for window in _cut(scene, side or _TILE_PX)]
        chosen = np.unique(np.linspace(0, len(places) - 1, min(len(places), _MAX_TILES)).round().astype(int))
        valid = [places[at] for at in chosen if _read(*places[at]).valid.any()]
        if len(valid) < _JUDGED_EVERY:
            px = side or _TILE_PX
            raise ModelFileError(
                f"the scenes for the calibration give {len(valid)} tiles of {px} x {px} pixels with data; at least "
                f"{_JUDGED_EVERY} are needed, and some dozens with all classes are better: give more scenes"
            )
        self.judged = valid[_JUDGED_EVERY - 1 :: _JUDGED_EVERY]
        self.calibrating = [one for at, one in enumerate(valid) if at % _JUDGED_EVERY != _JUDGED_EVERY - 1]

    def read(self, places: Sequence[tuple[Scene, Window]]) -> Iterator[Tile]:
        """Read tiles, one after the other; those of a fixed side are padded to it."""
        for place in places:
            tile = _read(*place)
            yield tile if self._fixed is None else tile.padded(self._fixed, self._fixed)


def _cut(scene: Scene, side: int) -> Iterator[Window]:
    height, width = (min(side, size) for size in scene.grid.shape)
    for top in range(0, scene.grid.height - height + 1, height):
        for left in range(0, scene.grid.width - width + 1, width):
            yield Window(left, top, width, height)


def _read(scene: Scene, window: Window) -> Tile:
    with scene.open() as reader:
        return reader.read(window)


def quantize_graph(model: AnyModel, path: Path, tiles: CalibrationTiles, *, min_agreement: float) -> Quantization:
    """Replace the ONNX file of a model by one that computes in int8, if its classes are those of fp32.

    The first and the last convolution of a network, its activation, and a pixel branch stay in fp32.

    Raises
    ------
    UsageError
        The graph has no convolutions between others.
    ModelFileError
        The classes of too many pixels of the held-out tiles differ.
    """
    nodes = _inner_nodes(path)
    if not nodes:
        raise UsageError(
            "int8 is for the inner convolutions of networks, and this model has none; leave out --quantize"
        )
    with atomic_write(path) as part:
        _quantize(path, part, nodes, (_as_input(tile) for tile in tiles.read(tiles.calibrating)))
        found = _judge(model, part, tiles)
        if not found.agreement >= min_agreement:
            raise ModelFileError(
                f"int8 gives {found.agreement:.2%} of {found.pixels:,} held-out pixels the class of fp32 "
                f"({describe_classes(found)}); at least {min_agreement:.2%} is required (--min-agreement). Nothing is "
                "written; calibrate with more scenes, or leave out --quantize"
            )
    return found


def describe_classes(found: Quantization) -> str:
    """Return the agreement of each class, in words."""
    return ", ".join(f"{name} {'-' if one is None else f'{one:.2%}'}" for name, one in found.per_class.items())


def _as_input(tile: Tile) -> NDArray[np.float32]:
    return np.where(tile.valid, tile.pixels, np.float32(np.nan))[None].astype(np.float32)


def _inner_nodes(path: Path) -> list[str]:
    """Return the nodes between convolutions: they have one before and one after them."""
    import onnx

    nodes = onnx.load(path).graph.node
    maker = {output: at for at, node in enumerate(nodes) for output in node.output}
    below = [{maker[one] for one in node.input if one in maker} for node in nodes]
    is_conv = [node.op_type == "Conv" for node in nodes]
    after_conv, before_conv = [False] * len(nodes), [False] * len(nodes)
    for at in range(len(nodes)):  # nodes come after those whose outputs they take
        after_conv[at] = any(is_conv[other] or after_conv[other] for other in below[at])
    for at in reversed(range(len(nodes))):
        for other in below[at]:
            before_conv[other] |= is_conv[at] or before_conv[at]
    inner = [node for at, node in enumerate(nodes) if after_conv[at] and before_conv[at]]
    return [node.name for node in inner] if any(node.op_type == "Conv" for node in inner) else []


def _quantize(source: Path, target: Path, nodes: list[str], inputs: Iterator[NDArray[np.float32]]) -> None:
    """Write a graph with the nodes in int8; ranges of their values are those on the inputs."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            one = next(inputs, None)
            return None if one is None else {INPUT: one}

    graph = onnx.load(source)
    with _quiet_logging():
        quantize_static(
            graph,
            target,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_QUANTIZED),
            nodes_to_quantize=nodes,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


@contextmanager
def _quiet_logging() -> Iterator[None]:
    """Silence warnings of onnxruntime that advise preparations, which a graph of segkit does not need."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)


def _judge(model: AnyModel, path: Path, tiles: CalibrationTiles) -> Quantization:
    """Compare the classes of a graph with those of the model in fp32, on the held-out tiles, in each runtime."""
    task, reference = model.task, TorchRunner(model, torch.device("cpu"), "fp32")
    threads = torch.get_num_threads()
    graphs = {name: open_graph(path, name, threads=threads) for name in RUNTIMES if is_installed(name)}
    counts = {name: _Counts(len(task.scored_categories)) for name in graphs}
    for tile in tiles.read(tiles.judged):
        expected = task.decide(reference([tile]))[0].numpy()
        for name, graph in graphs.items():
            decided = _decide(model, graph, tile)
            masks = [expected[target] == category for _, target, category in task.scored_categories]
            counts[name].add((decided == expected).all(axis=0), [mask & tile.valid for mask in masks], tile.valid)
    worst = min(counts.values(), key=lambda one: one.agreement)
    names = [name for name, _, _ in task.scored_categories]
    return Quantization(
        "int8",
        worst.agreement,
        dict(zip(names, worst.per_class, strict=True)),
        {name: one.agreement for name, one in counts.items()},
        len(tiles.calibrating),
        len(tiles.judged),
        worst.pixels,
    )


def _decide(model: AnyModel, graph: Graph, tile: Tile) -> NDArray[Any]:
    outputs = [torch.from_numpy(output) for output in graph(_as_input(tile))]
    return model.task.decide(join_outputs(model.task, outputs))[0].numpy()


class _Counts:
    """Pixels of the same class in two predictions: of all, and of those that have each class."""

    def __init__(self, categories: int) -> None:
        self.pixels = self._same = 0
        self._of_class, self._same_of_class = np.zeros(categories), np.zeros(categories)

    def add(self, same: NDArray[np.bool_], of_class: Sequence[NDArray[np.bool_]], valid: NDArray[np.bool_]) -> None:
        self.pixels += int(valid.sum())
        self._same += int((same & valid).sum())
        self._of_class += [mask.sum() for mask in of_class]
        self._same_of_class += [(mask & same).sum() for mask in of_class]

    @property
    def agreement(self) -> float:
        return self._same / self.pixels

    @property
    def per_class(self) -> list[float | None]:
        with np.errstate(invalid="ignore"):
            shares = (self._same_of_class / self._of_class).tolist()
        return [None if math.isnan(share) else share for share in shares]
