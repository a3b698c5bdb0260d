"""Compare error rates inside and outside the area of applicability, on two kinds of folds; print a table.

    .venv/bin/python tools/bench_outside.py --data ../shared/data/amazon        # ten minutes on one core

For the index of single pixels, which model files hold, and for three other descriptions of a pixel with the same
method: with the mean of its surroundings, with the mean and deviation of its scene, and the features before the last
layer of the network. The network is that of `bench_unseen_scenes.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_unseen_scenes import CHANGES, FOLDS, Scene, Trial, assign_folds, read_scenes
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from segkit.models.training_pixels import DissimilarityIndex, TrainingPixels

Array = NDArray[Any]
_SURROUNDINGS_PX, _WINDOW_PX, _EVERY = 65, 32, 3


def sample(description: Array) -> Array:
    """Return the pixels (n, C) of 16 windows of a scene (C, H, W), as training does."""
    starts = np.linspace(0, description.shape[-1] - _WINDOW_PX, 4).astype(int)
    windows = [description[:, r : r + _WINDOW_PX, c : c + _WINDOW_PX] for r in starts for c in starts]
    return np.concatenate([window.reshape(len(description), -1).T for window in windows]).astype(np.float32)


@torch.no_grad()
def run_network(trial: Trial, network: Any, scene: Scene) -> tuple[Array, Array]:
    """Return the features before the last layer (C, H, W), and the decision (H, W)."""
    inputs = torch.from_numpy(trial.inputs(scene.pixels, scene.pixels).astype(np.float32))[None]
    features = network.decoder(network.encoder(inputs))
    return features[0].numpy(), network.segmentation_head(features)[0].argmax(0).numpy()


def describe_surroundings(scene: Scene) -> Array:
    means = [uniform_filter(band, _SURROUNDINGS_PX, mode="nearest") for band in scene.pixels]
    return np.concatenate([scene.pixels, np.stack(means)])


def describe_scene(scene: Scene) -> Array:
    constant = np.broadcast_to(np.concatenate([scene.mean, scene.std])[:, None, None], (6, *scene.targets.shape))
    return np.concatenate([scene.pixels, constant])


def measure(training: list[Scene], held_out: list[Scene], options: argparse.Namespace) -> list[str]:
    """Train without a fold; return the cells of a row."""
    trial = Trial(CHANGES["base"], training, 0, options)
    network = trial.train()
    results = {scene.name: run_network(trial, network, scene) for scene in (*training, *held_out)}
    descriptions: list[Callable[[Scene], Array]] = [
        lambda scene: scene.pixels,
        describe_surroundings,
        describe_scene,
        lambda scene: results[scene.name][0],
    ]
    cells = []
    for describe in descriptions:
        pixels = TrainingPixels.from_samples([sample(describe(scene)) for scene in training], ["uint8"], [(1, 0)], None)
        assert pixels is not None
        index, counts = DissimilarityIndex(pixels), np.zeros((2, 2))
        for scene in held_out:
            some = describe(scene)[:, ::_EVERY, ::_EVERY].astype(np.float32)
            outside = index(some.reshape(len(some), -1).T.copy(), 1) > pixels.threshold
            targets, decided = (each[::_EVERY, ::_EVERY].ravel() for each in (scene.targets, results[scene.name][1]))
            for side in (0, 1):
                chosen = (targets >= 0) & (outside == side)
                counts[side] += chosen.sum(), (decided != targets)[chosen].sum()
        inside, out = counts[:, 1] / np.maximum(counts[:, 0], 1)
        cells.append(f"{inside:.1%}, {out:.1%} ({counts[1, 0] / counts[:, 0].sum():.0%})")
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with images/ and labels/")
    parser.add_argument("--steps", type=int, default=300)
    parser.set_defaults(network="unet", batch=8, tile=64)
    options = parser.parse_args()
    scenes = read_scenes(options.data)
    print("| fold | single pixels: error inside, outside (share outside) | surroundings | scene | features |")
    print("|---|---|---|---|---|")
    for kind in ("appearance", "random"):
        folds = assign_folds(scenes, kind)
        for fold in range(FOLDS):
            training = [scene for scene, of in zip(scenes, folds, strict=True) if of != fold]
            held_out = [scene for scene, of in zip(scenes, folds, strict=True) if of == fold]
            print(f"| {kind} {fold} | {' | '.join(measure(training, held_out, options))} |", flush=True)


if __name__ == "__main__":
    main()
