"""Training in two processes against one with the same global batch."""

import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import timm.layers
import torch
import yaml
from safetensors.torch import load_file
from synthetic import recipe_for, write_pair
from torch import distributed, nn

from segkit.data.area import whole
from segkit.data.areas import labelled_samples
from segkit.errors import RecipeError, UsageError
from segkit.models.run_folder import read_log
from segkit.runtime import distributed as processes
from segkit.task.task import IGNORE
from segkit.training.loaders import shared_out
from segkit.training.losses import LOSSES
from segkit.training.train import train

# Parts of one process.

LAYERS = {
    "plain": lambda: nn.BatchNorm2d(3),
    "cumulative": lambda: nn.BatchNorm2d(3, momentum=None),
    "bare": lambda: nn.BatchNorm2d(3, affine=False, track_running_stats=False),
    "with its activation": lambda: timm.layers.BatchNormAct2d(3),
}


def loss_cases():
    """{name: (loss, task, logits, planes, weights)}; the first half of a batch has far fewer known pixels."""
    random = torch.Generator().manual_seed(0)
    cases = {}
    for kind in ("binary", "multiclass", "multilabel"):
        task = recipe_for(Path(), kind).task
        logits = torch.randn(4, task.channels, 12, 12, generator=random)
        planes = torch.randint(0, len(task.categories) // task.planes, (4, task.planes, 12, 12), generator=random)
        planes[:2, :, 4:] = IGNORE
        planes[:2, -1] = IGNORE  # of the last class only the second half knows something
        for name, loss in LOSSES.items():
            for weights in (None, [1.0 + channel for channel in range(task.channels)]):
                cases[f"{kind} {name} {weights}"] = loss, task, logits, planes, weights
    return cases


def learned(part, share):
    """What the losses and layers give for a part of the batches: values, gradients and running statistics."""
    found = {}
    for name, (loss, task, logits, planes, weights) in loss_cases().items():
        mine = logits[part].clone().requires_grad_()
        value = loss(task, mine, planes[part], weights)
        value.backward()
        found[name] = value.detach(), mine.grad * share
    random = torch.Generator().manual_seed(1)
    values = 10 + torch.randn(4, 3, 5, 7, generator=random) * torch.tensor([0.1, 1.0, 10.0]).view(1, 3, 1, 1)
    slopes = torch.randn(values.shape, generator=random)
    for name, make in LAYERS.items():
        layer = make()
        for number, weight in enumerate(layer.parameters()):
            weight.data += torch.arange(3) / 10 + number
        mine = values[part].clone().requires_grad_()
        for _ in range(2):
            with processes.batch_norm():
                out = layer(mine)
            (out * slopes[part]).sum().backward()
        sums = [processes.total(weight.grad) for weight in layer.parameters()]
        found[name] = out.detach(), mine.grad, *sums, *(one.clone() for one in layer.buffers())
        layer.eval()
        with processes.batch_norm():
            found[f"{name}, evaluated"] = (layer(mine).detach(),)
    return found


def work(rank, folder):
    """One of two processes."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    found = learned(slice(2 * rank, 2 * rank + 2), 1 / 2)  # DDP takes the mean of the gradients
    found["told"] = (torch.tensor(processes.teller()(5 + rank)),)
    torch.save(found, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("halves")
    both = [multiprocessing.get_context("spawn").Process(target=work, args=(rank, folder)) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(300)
        assert process.exitcode == 0
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def together():
    return learned(slice(None), 1.0)


@pytest.mark.parametrize("name", loss_cases())
def test_a_loss_is_that_of_the_global_batch(halves, together, name):
    value, gradient = together[name]
    for half in halves:
        torch.testing.assert_close(half[name][0], value)
    torch.testing.assert_close(torch.cat([half[name][1] for half in halves]), gradient)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_normalises_as_with_the_global_batch(halves, together, name):
    """Logits, gradients at its input and weights, running statistics; and nothing of it where the network predicts."""
    near = {"rtol": 1e-4, "atol": 1e-4}
    for place, expected in enumerate(together[name]):
        if place < 2:
            torch.testing.assert_close(torch.cat([half[name][place] for half in halves]), expected, **near)
        else:
            for half in halves:
                torch.testing.assert_close(half[name][place], expected, **near)


def test_the_first_process_tells_the_others(halves):
    assert [half["told"][0].item() for half in halves] == [5, 5]
    assert processes.teller()("alone") == "alone"


# Whole trainings.

# With a high learning rate AdamW would blow rounding up to what a test sees; so does another order of a batch.
SETUP = {"epochs": 2, "steps": 4, "learning_rate": 2e-4}
MODELS = {
    # Stages that are built and not used; layers that contain their activation.
    "binary": {"encoder": "resnet18", "options": {"encoder_depth": 2, "decoder_channels": [16, 8]}},
    "multilabel": {},
}
# Records the crops that a process draws; dies before the second epoch where it is told to.
SCRIPT = """
import os, signal, sys
from segkit.cli import main
from segkit.data.datasets import TrainTiles
from segkit.training.train import _Training

drawn = open(f"crops-{os.environ.get('NODE_RANK', 0)}-{os.environ.get('LOCAL_RANK', 0)}", "a")
own = TrainTiles.__getitem__
TrainTiles.__getitem__ = lambda tiles, number: (print(number, file=drawn, flush=True), own(tiles, number))[1]
if os.environ.get("STRIKE"):
    _Training.on_train_epoch_start = lambda self: self.current_epoch and os.kill(os.getpid(), signal.SIGKILL)
main()
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """{kind: folder of two scenes}; of b little is known, with multilabel of each class something else."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in MODELS}
    for kind, folder in folders.items():
        for seed, name in enumerate("ab"):
            write_pair(folder, kind, name, height=192, width=192, seed=seed)
        with rasterio.open(folder / "labels/b.tif", "r+") as dataset:
            labels = dataset.read()
            labels[0, :, 40:] = 255
            dataset.write(labels)
    return folders


def recipe(data, kind, **setup):
    return recipe_for(data[kind], kind, model=MODELS[kind], train=SETUP | setup)


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """{kind: folder of the run of one process}."""
    folder = tmp_path_factory.mktemp("alone")
    return {kind: train(recipe(data, kind, batch_size=8), folder / kind).folder for kind in MODELS}


def start(folder, *options, **environment):
    """Start `segkit train` in a folder of its own; its temporary files go there, too."""
    command = [sys.executable, "../script.py", "train", "../recipe.yaml", "-o", "run", *options]
    variables = {"USE_LIBUV": "0", "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)}
    return subprocess.Popen(
        command, cwd=folder, env=os.environ | variables | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def prepared(root, recipe, *names):
    (root / "script.py").write_text(SCRIPT)
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe.to_dict(), sort_keys=False))
    for name in names:
        (root / name).mkdir()
    return [root / name for name in names]


@pytest.fixture(scope="module")
def devices(data, tmp_path_factory):
    """Where two devices of one machine trained, were killed after an epoch and resumed, and what they said then."""
    (folder,) = prepared(tmp_path_factory.mktemp("devices"), recipe(data, "binary", devices=2), "place")
    killed = start(folder, STRIKE="yes")
    _, said = killed.communicate(timeout=300)
    assert killed.returncode == -signal.SIGKILL, said
    resumed = start(folder, "--resume")
    told, said = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, said
    return folder, told, said


@pytest.fixture(scope="module")
def machines(data, tmp_path_factory):
    """Where the first and the second of two machines work, each in a folder that the other does not know."""
    folders = prepared(tmp_path_factory.mktemp("machines"), recipe(data, "multilabel", num_nodes=2), "first", "second")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    both = [start(folder, NODE_RANK=str(rank), **where) for rank, folder in enumerate(folders)]
    for process in both:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    return folders


def contents(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", MODELS)
def test_two_processes_learn_what_one_does(alone, devices, machines, kind):
    mine, theirs = alone[kind], (devices[0] if kind == "binary" else machines[0]) / "run"
    for one, other in zip(read_log(mine / "log.csv"), read_log(theirs / "log.csv"), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-4)
        assert other == pytest.approx(one | {"seconds": other["seconds"]}, abs=1e-3)
    found, expected = (json.loads((folder / "metrics.json").read_text()) for folder in (theirs, mine))
    for name in ("mean_iou", "macro_f1", "overall_accuracy", "ece", "ece_uncalibrated"):
        assert found[name] == pytest.approx(expected[name], abs=1e-3)
    assert found["pixels"] == expected["pixels"]
    weights, others = (load_file(folder / "model.safetensors") for folder in (mine, theirs))
    assert weights.keys() == others.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(others[name], tensor, rtol=0.01, atol=0.001)
    assert contents(mine) == contents(theirs)


def test_no_crop_is_drawn_twice_and_the_crops_are_those_of_one_process(machines):
    drawn = [list(map(int, (machines[k] / f"crops-{k}-0").read_text().split())) for k in range(2)]
    for step in range(2 * 4):
        here = [numbers[4 * step : 4 * step + 4] for numbers in drawn]
        assert sorted(here[0] + here[1]) == list(range(8 * step, 8 * step + 8))
    assert len(drawn[0]) == len(drawn[1]) == 2 * 4 * 4


def test_only_the_first_process_writes(machines):
    """The second would write where it works: its run folder, and temporary files."""
    assert contents(machines[1]) == {"crops-1-0"}
    assert not (machines[1] / "run").exists()


def test_only_the_first_process_speaks(devices):
    _, told, said = devices
    assert told.count("mean_iou") == 1
    assert [line.split("  ")[0] for line in said.splitlines() if line.startswith("epoch")] == ["epoch 2/2"]
    assert "warning" not in said


def test_a_run_is_resumed_on_as_many_devices(data, alone, devices, tmp_path):
    with pytest.raises(RecipeError, match=r"another recipe \('batch_size: 4' then, 'batch_size: 8' now\)"):
        train(recipe(data, "binary", batch_size=8), devices[0] / "run", resume=True)
    with pytest.raises(RecipeError, match=r"another recipe \('devices: 2' then, 'devices: 1' now\)"):
        train(recipe(data, "binary"), devices[0] / "run", resume=True)
    # With `devices: auto` only the checkpoint knows.
    shutil.copytree(alone["binary"], tmp_path / "run")
    last = tmp_path / "run/checkpoints/last.ckpt"
    torch.save(torch.load(last, weights_only=True) | {"devices": 2}, last)
    with pytest.raises(UsageError, match="was started on 2 devices, here are 1; resume it on as many"):
        train(recipe(data, "binary", batch_size=8), tmp_path / "run", resume=True)


@pytest.mark.parametrize("world", [1, 2, 3, 150])
def test_every_pixel_is_validated_once_by_however_many(data, world, monkeypatch):
    monkeypatch.setattr(sys.modules["segkit.training.train"], "_PIECE", 50)
    recipe_ = recipe(data, "multilabel")
    areas = whole(labelled_samples(recipe_.data.train, recipe_.data, recipe_.task, "data.train"))
    times = {id(area): np.zeros(area.sample.scene.grid.shape, dtype=int) for area in areas}
    for rank in range(world):
        for area, windows in shared_out(areas, rank, world):
            for window in area.windows if windows is None else windows:
                times[id(area)][window.toslices()] += 1
    assert len(times) == 2
    assert all((counted == 1).all() for counted in times.values())
