"""Prediction of a scene block by block into a sink, for what needs no files: arrays, statistics of windows."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TypeVar

from segkit.inference.arrays import OutputSink, predict_into
from segkit.inference.outputs import OutputRequest
from segkit.inference.runner_base import CompilationError, OutOfMemoryError
from segkit.inference.settings import PredictOptions, ResolvedSettings
from segkit.inference.tasks import WorkerContext, choose_settings, torch_threads
from segkit.io.region import Region
from segkit.io.scene import Scene
from segkit.runtime.progress import progress

S = TypeVar("S", bound=OutputSink)


def stream_scene(
    make_sink: Callable[[], S],
    context: WorkerContext,
    scene: Scene,
    options: PredictOptions,
    outputs: Sequence[OutputRequest],
    *,
    region: Region | None = None,
    stacklevel: int = 2,
) -> tuple[S, ResolvedSettings]:
    """Predict a scene; with smaller windows if memory runs out, and without compilation if that fails.

    Parameters
    ----------
    make_sink
        Makes what takes the outputs; each try begins with a new one.
    region
        Pixels to predict, in place of the area of interest of `context`.
    stacklevel
        Of the warning about a second try.
    """
    settings = choose_settings(context, scene, options, outputs)
    device = options.pick_device(context.model)
    while True:
        assert settings.batch is not None
        tiling = settings.tiling(scene.grid, context.model.stride)
        megapixels = scene.grid.height * scene.grid.width / 1e6
        sink = make_sink()
        try:
            with (
                torch_threads(settings),
                progress(scene.name, megapixels, "Mpx", show=context.show_progress) as advance,
            ):
                predict_into(
                    sink,
                    context.runner(device, settings, scene, outputs),
                    scene,
                    tiling,
                    outputs,
                    batch=options.batch_size or settings.batch,
                    region=region or context.region(scene.grid),
                    advance=advance,
                )
            return sink, settings
        except (OutOfMemoryError, CompilationError) as error:
            settings, text = settings.after_failure(error)
            warnings.warn(text, stacklevel=stacklevel + 1)
        settings = choose_settings(context, scene, options, outputs, asdict(settings))
