"""Training in two processes against one with the same global batch."""

import json
import shutil
import signal
import socket

import numpy as np
import pytest
import rasterio
import segkit_command
import torch
import yaml
from fork_server import SERVER
from halves import LAYERS, learned, loss_cases, work
from quick import skip_measurements
from safetensors.torch import load_file
from synthetic import recipe_for, segmenter, write_pair

from segkit.data.area import full_areas
from segkit.data.areas import open_labelled_samples
from segkit.errors import RecipeError, UsageError
from segkit.models.run_folder import read_log
from segkit.runtime import distributed as processes
from segkit.training.loaders import split_among_processes
from segkit.training.train import train

# Losses and layers.


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("halves")
    both = [SERVER.Process(target=work, args=(rank, folder)) for rank in range(2)]
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


def test_the_first_process_sends_its_value_to_the_others(halves):
    assert [half["broadcast"][0].item() for half in halves] == [5, 5]
    assert processes.broadcaster()("alone") == "alone"


# Whole trainings.

# With a high learning rate AdamW would blow rounding up to what a test sees; so does another order of a batch.
SETUP = {"epochs": 2, "steps_per_epoch": 4, "learning_rate": 2e-4}
MODELS = {
    # Stages that are built and not used; layers that contain their activation.
    "binary": {"encoder": "resnet18", "options": {"encoder_depth": 2, "decoder_channels": [16, 8]}},
    "multilabel": {},
}
# With the learning rate and a frozen part of a training that starts from a model.
FINE_TUNING = {"freeze": ["decoder"], "encoder_learning_rate_factor": 0.5}


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
    segmenter(folders["multilabel"], "multilabel").save(folders["multilabel"] / "source.safetensors")
    return folders


def recipe(data, kind, **setup):
    if kind == "binary":
        return recipe_for(data[kind], kind, model=MODELS[kind], train=SETUP | setup)
    start = {"start_from": str(data[kind] / "source.safetensors")}
    return recipe_for(data[kind], kind, model=MODELS[kind] | start, train=SETUP | FINE_TUNING | setup)


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """{kind: folder of the run of one process}."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        skip_measurements(patch.setattr)
        return {kind: train(recipe(data, kind, batch_size=8), folder / kind).folder for kind in MODELS}


def start(folder, *options, **environment):
    """Start `segkit train` in a folder of its own; its temporary files go there, too."""
    variables = {"USE_LIBUV": "0", "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)}
    return segkit_command.start(
        folder, "../script.py", "train", "../recipe.yaml", "-o", "run", *options, **variables, **environment
    )


def output(process, folder, code=0):
    """Wait for a command; return what it wrote to stdout and stderr."""
    process.join(300)
    texts = [(folder / f"{name}.txt").read_text() for name in ("stdout", "stderr")]
    assert process.exitcode == code, texts[1]
    for name in ("stdout", "stderr"):
        (folder / f"{name}.txt").unlink()
    return texts


def prepared(root, recipe, *names):
    (root / "script.py").write_text(segkit_command.SCRIPT)
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe.to_dict(), sort_keys=False))
    for name in names:
        (root / name).mkdir()
    return [root / name for name in names]


@pytest.fixture(scope="module")
def devices(data, tmp_path_factory):
    """Folder in which two devices trained, were killed after an epoch and resumed; and the output of the latter."""
    (folder,) = prepared(tmp_path_factory.mktemp("devices"), recipe(data, "binary", devices=2), "place")
    output(start(folder, STRIKE="yes"), folder, -signal.SIGKILL)
    return folder, *output(start(folder, "--resume"), folder)


@pytest.fixture(scope="module")
def machines(data, tmp_path_factory):
    """Folders of the first and the second of two machines, each of which knows only its own."""
    folders = prepared(tmp_path_factory.mktemp("machines"), recipe(data, "multilabel", num_nodes=2), "first", "second")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    both = [start(folder, NODE_RANK=str(rank), **where) for rank, folder in enumerate(folders)]
    for process, folder in zip(both, folders, strict=True):
        output(process, folder)
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


def test_only_the_first_process_prints(devices):
    _, messages, said = devices
    assert messages.count("mean_iou") == 2  # of the network and of the linear discriminant
    assert [line.split("  ")[0] for line in said.splitlines() if line.startswith("epoch")] == ["epoch 2/2"]
    assert all("linear discriminant" in line for line in said.splitlines() if "warning" in line)


def test_a_run_is_resumed_on_as_many_devices(data, alone, devices, tmp_path):
    with pytest.raises(RecipeError, match=r"another recipe \(train\.batch_size was 4, now 8; train\.devices was 2"):
        train(recipe(data, "binary", batch_size=8), devices[0] / "run", resume=True)
    with pytest.raises(RecipeError, match=r"another recipe \(train\.devices was 2, now 1\)"):
        train(recipe(data, "binary"), devices[0] / "run", resume=True)
    # With `devices: auto` only the checkpoint knows.
    shutil.copytree(alone["binary"], tmp_path / "run")
    last = tmp_path / "run/checkpoints/last.ckpt"
    torch.save(torch.load(last, weights_only=True) | {"devices": 2}, last)
    with pytest.raises(UsageError, match=r"was started with 2 devices, now there are 1; set train\.devices to 2"):
        train(recipe(data, "binary", batch_size=8), tmp_path / "run", resume=True)


@pytest.mark.parametrize("world", [1, 2, 3, 150])
def test_every_pixel_is_validated_once_by_however_many(data, world, monkeypatch):
    monkeypatch.setattr("segkit.training.loaders._WINDOW_SIZE", 50)
    recipe_ = recipe(data, "multilabel")
    areas = full_areas(open_labelled_samples(recipe_.data.train, recipe_.data, recipe_.task, "data.train"))
    times = {id(area): np.zeros(area.sample.scene.grid.shape, dtype=int) for area in areas}
    for rank in range(world):
        for area, windows in split_among_processes(areas, rank, world):
            for window in area.windows if windows is None else windows:
                times[id(area)][window.toslices()] += 1
    assert len(times) == 2
    assert all((counted == 1).all() for counted in times.values())
