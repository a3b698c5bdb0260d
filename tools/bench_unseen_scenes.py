"""Try changes of a training, each alone, on scenes unlike those trained on; print a table.

    .venv/bin/python tools/bench_unseen_scenes.py --data ../shared/data/amazon --out trials.jsonl        # hours
    .venv/bin/python tools/bench_unseen_scenes.py --network pixel --steps 1200 --tile 32 --data ../shared/data/amazon
    .venv/bin/python tools/bench_unseen_scenes.py --data ../shared/data/amazon base haze --seeds 1      # minutes

Two kinds of folds: scenes drawn at random, and scenes ordered by appearance (dark to bright) and cut, as the split
`by: appearance` does. Columns: accuracy of all pixels of the three folds, mean IoU, the worst fold and the worst scene
(accuracy), as the mean over seeds, and the standard deviation of the accuracy over seeds. Nothing is chosen on the
scenes that are scored: the weights are those of the last step.

The network and loss are those of `configs/amazon.yaml`, with smaller tiles and fewer steps, or a network of single
pixels (--network pixel), in a loop of its own, so that a change is a few lines here and none in segkit. Results are
kept in --out; a second call measures what is missing.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor, nn

from segkit.data.appearance import cut_folds, describe_appearance, order_by_appearance
from segkit.data.augmentation import GeometricTransform, RadiometricJitter, apply_symmetry
from segkit.data.statistics import BandMoments
from segkit.io.scene import Tile
from segkit.models.network import make_network
from segkit.recipe.schema import Model
from segkit.task import LandCoverClass, Task
from segkit.training.losses import combine_losses

FOLDS, IGNORED = 3, 255
Array = NDArray[Any]


@dataclass(frozen=True)
class Scene:
    """Pixels (C, H, W) float32, targets (H, W) int16 with -1 where unlabelled, mean and deviation of the bands."""

    name: str
    pixels: Array
    targets: Array
    mean: Array
    std: Array


@dataclass(frozen=True)
class Change:
    """What differs from the base."""

    light: float = 0.1  # joint standard deviation of the light changes
    haze: float = 0.0  # standard deviation of a further joint offset, in levels of the bands
    jitter: bool = True
    geometric: bool = False
    exchange: Callable[[Array, Scene, Scene, np.random.Generator], Array] | None = None  # of style, between scenes
    scene_inputs: str = "none"  # "instead", "beside"
    ratios: bool = False
    dropout: float = 0.0
    smoothing: float = 0.0
    stages: int = 3
    average_weights: bool = False
    renormalise: bool = False  # batch normalisation re-estimated on the scene to be mapped
    discriminant: bool = False  # mean of the probabilities with those of a linear discriminant of the training pixels
    members: int = 1  # models whose probabilities are averaged, each trained without a part of the scenes


def exchange_moments(pixels: Array, own: Scene, other: Scene, random: np.random.Generator) -> Array:
    """Give pixels a share of the mean and deviation of another scene."""
    share = random.random()
    mean, std = (share * b + (1 - share) * a for a, b in ((own.mean, other.mean), (own.std, other.std)))
    return (
        (pixels - own.mean[:, None, None]) / own.std[:, None, None] * std[:, None, None] + mean[:, None, None]
    ).astype(np.float32)


def exchange_spectrum(pixels: Array, own: Scene, other: Scene, random: np.random.Generator) -> Array:
    """Give pixels the low spatial frequencies' amplitudes of another scene (Yang and Soatto 2020, "FDA")."""
    size = pixels.shape[-1]
    row, column = random.integers(other.pixels.shape[-1] - size + 1, size=2)
    one, two = (np.fft.fft2(each) for each in (pixels, other.pixels[:, row : row + size, column : column + size]))
    amplitude, reach = np.abs(one), max(1, round(0.02 * size))
    low = np.r_[0 : reach + 1, size - reach : size]
    amplitude[:, low[:, None], low] = np.abs(two)[:, low[:, None], low]
    return np.fft.ifft2(amplitude * np.exp(1j * np.angle(one))).real.astype(np.float32)


def exchange_histogram(pixels: Array, own: Scene, other: Scene, random: np.random.Generator) -> Array:
    """Give pixels the histogram of another scene, band by band."""
    levels = np.linspace(0, 100, 101)
    bands = []
    for band, source, wanted in zip(pixels, own.pixels[:, ::8, ::8], other.pixels[:, ::8, ::8], strict=True):
        bands.append(np.interp(band, np.percentile(source, levels), np.percentile(wanted, levels)))
    return np.stack(bands).astype(np.float32)


CHANGES = {
    "base": Change(),
    "no light changes": Change(jitter=False),
    "light 0.2": Change(light=0.2),
    "light 0.3": Change(light=0.3),
    "haze": Change(haze=0.3),
    "statistics of the scene": Change(scene_inputs="instead"),
    "statistics of the scene beside": Change(scene_inputs="beside"),
    "statistics of the scene beside, light 0.2": Change(scene_inputs="beside", light=0.2),
    "moments exchanged": Change(exchange=exchange_moments),
    "spectrum exchanged": Change(exchange=exchange_spectrum),
    "histogram exchanged": Change(exchange=exchange_histogram),
    "band ratios": Change(ratios=True),
    "dropout 0.2": Change(dropout=0.2),
    "label smoothing 0.1": Change(smoothing=0.1),
    "five stages": Change(stages=5),
    "averaged weights": Change(average_weights=True),
    "batch normalisation of the scene": Change(renormalise=True),
    "scale and rotation": Change(geometric=True),
    "mean with the discriminant": Change(discriminant=True),
    "mean of three models": Change(members=3),
}


def read_scenes(folder: Path) -> list[Scene]:
    scenes = []
    for path in sorted((folder / "images").glob("*.tif")):
        with rasterio.open(path) as file:
            pixels = file.read([1, 2, 3]).astype(np.float32)
        with rasterio.open(folder / "labels" / path.name) as file:
            codes = file.read(1).astype(np.int16)
        targets = np.where(codes == IGNORED, np.int16(-1), codes)
        scenes.append(Scene(path.stem, pixels, targets, pixels.mean((1, 2)), pixels.std((1, 2))))
    return scenes


def assign_folds(scenes: list[Scene], kind: str) -> NDArray[np.intp]:
    """Return the fold of each scene."""
    if kind == "random":
        return np.random.default_rng(0).permutation(len(scenes)) % FOLDS
    moments = []
    for scene in scenes:
        moments.append(BandMoments(3))
        moments[-1].add(scene.pixels, np.ones(scene.pixels.shape[1:], bool))
    order = order_by_appearance(describe_appearance(moments))
    folds = np.empty(len(scenes), np.intp)
    folds[order] = cut_folds(np.array([(scenes[i].targets >= 0).sum() for i in order], float), FOLDS)
    return folds


@dataclass
class Trial:
    """A training with one change."""

    change: Change
    scenes: list[Scene]
    seed: int
    options: argparse.Namespace
    task: Task = field(default_factory=lambda: Task("binary", (LandCoverClass("deforestation", 1),)))

    def __post_init__(self) -> None:
        pixels = np.concatenate([scene.pixels.reshape(3, -1)[:, ::7] for scene in self.scenes], axis=1)
        self.mean, self.std = pixels.mean(1), pixels.std(1)

    def inputs(self, pixels: Array, of_scene: Array) -> Array:
        """Return the input (C, H, W): of changed pixels, and of the same pixels in statistics of their scene."""
        normal = (pixels - self.mean[:, None, None]) / self.std[:, None, None]
        if self.change.scene_inputs == "instead":
            return of_scene
        if self.change.scene_inputs == "beside":
            return np.concatenate([normal, of_scene])
        if self.change.ratios:
            r, g, b = np.maximum(pixels, 1)
            return np.concatenate([normal, 5 * np.stack([(r - g) / (r + g), (r - b) / (r + b), (g - b) / (g + b)])])
        return normal

    def draw(self, random: np.random.Generator) -> tuple[Array, Array]:
        """Return the inputs and targets of one tile."""
        change = self.change
        scene = self.scenes[random.integers(len(self.scenes))]
        row, column = random.integers(scene.pixels.shape[-1] - self.options.tile + 1, size=2)
        window = np.s_[..., row : row + self.options.tile, column : column + self.options.tile]
        pixels = scene.pixels[window]
        of_scene = (pixels - scene.mean[:, None, None]) / scene.std[:, None, None]
        if change.exchange is not None and random.random() < 0.5:
            other = self.scenes[random.integers(len(self.scenes))]
            pixels = change.exchange(pixels, scene, other, random)
        tile, targets = Tile(pixels.copy(), np.ones(pixels.shape[1:], bool)), scene.targets[window][None]
        if change.jitter:
            jitter = RadiometricJitter(self.mean, self.std, shared=change.light, per_band=0.01, probability=0.9)
            tile, targets = jitter(tile, targets, random)
        if change.haze:
            offset = change.haze * random.standard_normal() * np.clip(self.mean, 0, 6 * self.std)
            tile = Tile(tile.pixels + offset.astype(np.float32)[:, None, None], tile.valid)
        both = Tile(np.concatenate([tile.pixels, of_scene]).astype(np.float32), tile.valid)
        if change.geometric:
            means = [*self.mean, 0, 0, 0]
            both, targets = GeometricTransform(means, scale=(0.75, 1.33), degrees=45, probability=0.7)(
                both, targets, random
            )
            both = Tile(np.nan_to_num(both.pixels, nan=0.0), both.valid)
        both, targets = apply_symmetry(both, targets, random)
        return self.inputs(both.pixels[:3], both.pixels[3:]).astype(np.float32), targets

    def make_network(self) -> Any:
        """Return the network with random weights."""
        channels = len(self.draw(np.random.default_rng(0))[0])
        dropout = nn.Dropout2d(self.change.dropout)
        if self.options.network == "pixel":
            first, second, last = nn.Conv2d(channels, 32, 1), nn.Conv2d(32, 32, 1), nn.Conv2d(32, 2, 1)
            return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), dropout, last)
        decoder = [48, 32, 24] if self.change.stages == 3 else [128, 64, 48, 32, 24]
        options = {"encoder_depth": self.change.stages, "decoder_channels": decoder}
        recipe = Model(architecture="unet", encoder="resnet18", encoder_weights=None, options=options)
        network = make_network(recipe, channels, 2, pretrained=False)
        network.segmentation_head.insert(0, dropout)
        return network

    def train(self) -> nn.Module:
        """Return the network of the last step."""
        torch.manual_seed(self.seed)
        random = np.random.default_rng(self.seed)
        network = self.make_network().to(memory_format=torch.channels_last)
        averaged = copy.deepcopy(network)
        loss_of = combine_losses({"pixel": 1.0, "dice": 1.0}, self.task, smoothing=self.change.smoothing)
        optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
        steps = self.options.steps
        warm = max(1, steps // 20)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: min(1, (step + 1) / warm) * 0.5 * (1 + np.cos(np.pi * step / steps)),
        )
        for step in range(steps):
            drawn = [self.draw(random) for _ in range(self.options.batch)]
            inputs, targets = (torch.from_numpy(np.stack(each)) for each in zip(*drawn, strict=True))
            with torch.autocast("cpu", torch.bfloat16):
                logits = network(inputs.to(memory_format=torch.channels_last))
            loss = loss_of(logits.float(), targets)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if self.change.average_weights:
                keep = min(0.99, step / (step + 10))
                with torch.no_grad():
                    for old, new in zip(averaged.state_dict().values(), network.state_dict().values(), strict=True):
                        old.copy_(keep * old + (1 - keep) * new if old.is_floating_point() else new)
        return (averaged if self.change.average_weights else network).eval()

    @cached_property
    def of_pixels(self) -> LinearDiscriminantAnalysis:
        """A linear discriminant of a hundredth of the training pixels, with the shares of the classes as they are."""
        pixels = np.concatenate([scene.pixels.reshape(3, -1)[:, ::97] for scene in self.scenes], axis=1)
        targets = np.concatenate([scene.targets.ravel()[::97] for scene in self.scenes])
        return LinearDiscriminantAnalysis().fit(pixels.T[targets >= 0], targets[targets >= 0])

    @torch.no_grad()
    def predict(self, network: nn.Module, scene: Scene) -> Tensor:
        """Return the probability of deforestation (H, W)."""
        of_scene = (scene.pixels - scene.mean[:, None, None]) / scene.std[:, None, None]
        inputs = torch.from_numpy(self.inputs(scene.pixels, of_scene).astype(np.float32))[None]
        if self.change.renormalise:
            network = copy.deepcopy(network)
            for layer in network.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.train()
        with torch.autocast("cpu", torch.bfloat16):
            p: Tensor = network(inputs.to(memory_format=torch.channels_last)).float().softmax(1)[0, 1]
        if self.change.discriminant:
            flat = scene.pixels.reshape(3, -1).T
            p = (p + torch.from_numpy(self.of_pixels.predict_proba(flat)[:, 1].reshape(p.shape))) / 2
        return p


def measure(change: Change, scenes: list[Scene], folds: NDArray[np.intp], fold: int, seed: int, options: Any) -> Any:
    """Train without a fold; return the confusion matrix of each of its scenes."""
    training = [scene for scene, of in zip(scenes, folds, strict=True) if of != fold]
    held_out = [scene for scene, of in zip(scenes, folds, strict=True) if of == fold]
    parts = np.random.default_rng(seed).permutation(len(training)) % change.members
    trials = []
    for member in range(change.members):
        chosen = [scene for scene, part in zip(training, parts, strict=True) if change.members == 1 or part != member]
        trial = Trial(change, chosen, seed + 100 * member, options)
        trials.append((trial, trial.train()))
    found = {}
    for scene in held_out:
        p = torch.stack([trial.predict(network, scene) for trial, network in trials]).mean(0).numpy() > 0.5
        known = scene.targets >= 0
        found[scene.name] = np.bincount(2 * scene.targets[known] + p[known], minlength=4).tolist()
    return found


def describe(lines: list[Any]) -> list[str]:
    """Return accuracy, mean IoU, worst fold and worst scene of the folds of several seeds."""

    def accuracy(matrix: Array) -> float:
        return float((matrix[0] + matrix[3]) / matrix.sum())

    def iou(m: Array) -> float:
        return float((m[0] / (m[0] + m[1] + m[2]) + m[3] / (m[3] + m[1] + m[2])) / 2)

    rows = []
    for seed in sorted({line["seed"] for line in lines}):
        of_folds = [[np.array(m) for m in line["scenes"].values()] for line in lines if line["seed"] == seed]
        if len(of_folds) < FOLDS:
            continue
        sums = [np.sum(matrices, axis=0) for matrices in of_folds]
        worst = min(accuracy(m) for matrices in of_folds for m in matrices)
        rows.append([accuracy(sum(sums)), iou(sum(sums)), min(accuracy(one) for one in sums), worst])
    if not rows:
        return ["-"] * 5
    spread = f"{np.std(rows, axis=0, ddof=1)[0]:.4f}" if len(rows) > 1 else "-"
    return [*(f"{value:.3f}" for value in np.mean(rows, axis=0)), spread]


def read(out: Path) -> list[Any]:
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def render(lines: list[Any], names: list[str]) -> str:
    """Return the table as Markdown."""
    head = ["accuracy", "mean IoU", "worst fold", "worst scene", "±"]
    rows = [["change", *(f"{kind}: {one}" for kind in ("random", "appearance") for one in head)], ["---"] * 11]
    for name in names:
        row = [name]
        for kind in ("random", "appearance"):
            row += describe([line for line in lines if line["change"] == name and line["kind"] == kind])
        rows.append(row)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("changes", nargs="*", default=list(CHANGES), help=f"of {', '.join(CHANGES)}")
    parser.add_argument("--data", type=Path, required=True, help="folder with images/ and labels/")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--network", choices=["pixel", "unet"], default="unet")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tile", type=int, default=64, help="side in pixels")
    parser.add_argument("--out", type=Path, default=Path("unseen_scenes.jsonl"))
    options = parser.parse_args()
    scenes = read_scenes(options.data)
    done = {(line["change"], line["kind"], line["fold"], line["seed"]) for line in read(options.out)}
    for seed in range(options.seeds):
        for name in options.changes:
            for kind in ("appearance", "random"):
                folds = assign_folds(scenes, kind)
                for fold in range(FOLDS):
                    if (name, kind, fold, seed) in done:
                        continue
                    started = time.perf_counter()
                    found = measure(CHANGES[name], scenes, folds, fold, seed, options)
                    line = {"change": name, "kind": kind, "fold": fold, "seed": seed, "scenes": found}
                    with options.out.open("a") as file:
                        print(json.dumps(line), file=file)
                    share = np.sum(list(found.values()), axis=0)
                    accuracy = (share[0] + share[3]) / share.sum()
                    seconds = time.perf_counter() - started
                    print(f"{name}, {kind} fold {fold}, seed {seed}: {accuracy:.4f} in {seconds:.0f} s", flush=True)
    print(render(read(options.out), options.changes))


if __name__ == "__main__":
    main()
