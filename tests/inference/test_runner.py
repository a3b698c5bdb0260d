import weakref
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from synthetic import segmenter
from torch import nn
from torch._dynamo.exc import Unsupported
from torch.nn import functional

from segkit.inference.device import available_memory
from segkit.inference.outputs import OutputRequest
from segkit.inference.runner import (
    bytes_per_pixel,
    precision_agreement,
)
from segkit.inference.runner_base import CompilationError, OutOfMemoryError
from segkit.inference.torch_runner import TorchRunner, can_compile, operations_per_pixel
from segkit.io.scene import Tile
from segkit.task import LandCoverClass, Task

CPU = torch.device("cpu")
TASKS = {
    "multiclass": Task("multiclass", (LandCoverClass("water", 1), LandCoverClass("forest", 2))),
    "multilabel": Task("multilabel", (LandCoverClass("water", 1), LandCoverClass("forest", 2))),
}
TASK = TASKS["multiclass"]


@dataclass
class Model:
    """A stand-in for a Segmenter of two bands: logits by a function of pixels, valid and precision."""

    logits: object
    task: Task = TASK
    bands: int = 2
    fixed_window_size: int | None = None
    backend: str = "torch"
    asked: list = field(default_factory=list)

    def optimized_for_inference(self, device, precision):
        self.asked.append((device, precision))
        return lambda pixels, valid: self.logits(pixels, valid, precision)


def mixed(pixels, valid, _precision=None):
    """A network that sees to the right and below, and what is valid."""
    weight = torch.linspace(-2, 2, 3 * 2 * 9).sin().reshape(3, 2, 3, 3)
    return functional.conv2d(functional.pad(pixels.where(valid[:, None], 0.0), (0, 2, 0, 2)), weight)


def tiles(count, height=12, width=20, seed=0):
    random = np.random.default_rng(seed)
    return [
        Tile(random.random((2, height, width), dtype=np.float32), random.random((height, width)) > 0.2)
        for _ in range(count)
    ]


def expected(tile, logits=mixed, task=TASK):
    with torch.inference_mode():
        return task.probabilities(logits(torch.tensor(tile.pixels[None]), torch.tensor(tile.valid[None])))[0]


@pytest.mark.parametrize("count", [1, 3])
def test_a_runner_gives_each_tile_its_probabilities(count):
    model = Model(mixed)
    runner = TorchRunner(model, CPU, "fp32")
    given = tiles(count)
    for tile in given:
        tile.pixels.setflags(write=False)
    found = runner(given)
    assert model.asked == [(CPU, "fp32")]
    assert (runner.task, runner.channels, runner.device) == (TASK, 3, CPU)
    assert found.dtype == torch.float32
    assert found.shape == (count, 3, 12, 20)
    for one, tile in zip(found, given, strict=True):
        torch.testing.assert_close(one, expected(tile))


def test_a_runner_runs_a_segmenter(tmp_path):
    model = segmenter(tmp_path)
    pixels = np.full((3, 40, 24), np.nan, dtype=np.float32)
    pixels[:, 4:] = np.random.default_rng(0).normal(500, 50, (3, 36, 24))
    tile = Tile(pixels, ~np.isnan(pixels[0]))
    found = TorchRunner(model, CPU, "fp32")([tile])[0]
    torch.testing.assert_close(found, expected(tile, model, model.task), atol=1e-3, rtol=0)


def too_much(pixels):
    """What a device says that has no memory left."""
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def much_too_much(pixels):
    raise MemoryError


SCARCE = {"real": lambda pixels: pixels.new_empty(2**56), "cuda": too_much, "host": much_too_much}


@pytest.mark.parametrize("lacking", SCARCE.values(), ids=SCARCE)
def test_a_batch_that_memory_does_not_hold_is_halved_and_that_remembered(lacking):
    sizes = []

    def scarce(pixels, valid, precision):
        sizes.append(len(pixels))
        if len(pixels) > 2:
            lacking(pixels)
        return mixed(pixels, valid)

    runner = TorchRunner(Model(scarce), CPU, "fp32")
    given = tiles(9)
    for _ in range(2):
        found = runner(given)
        torch.testing.assert_close(found, torch.stack([expected(tile) for tile in given]))
    assert sizes == [9, 4, 2, 2, 2, 2, 1, 2, 2, 2, 2, 1]
    runner(given[:1])
    assert sizes[-1] == 1


@pytest.mark.parametrize("lacking", SCARCE.values(), ids=SCARCE)
def test_one_tile_that_memory_does_not_hold_is_reported(lacking):
    runner = TorchRunner(Model(lambda pixels, valid, precision: lacking(pixels)), CPU, "fp32")
    with pytest.raises(
        OutOfMemoryError,
        match=r"a window of 12 x 20 pixels does not fit into the memory of the cpu; pass a smaller --tile",
    ):
        runner(tiles(3))


def test_what_a_failed_attempt_held_is_free_before_the_next():
    held = []

    def scarce(pixels, valid, precision):
        assert all(reference() is None for reference in held)
        large = pixels * 2
        held.extend(weakref.ref(tensor) for tensor in (pixels, large))
        return pixels.new_empty(2**56)

    runner = TorchRunner(Model(scarce), CPU, "fp32")
    with pytest.raises(OutOfMemoryError) as caught:
        runner(tiles(4))
    assert len(held) == 2 * 3
    assert all(reference() is None for reference in held), caught.value


def test_other_errors_of_the_network_are_not_of_memory():
    runner = TorchRunner(Model(lambda pixels, *_: pixels.reshape(7)), CPU, "fp32")
    with pytest.raises(RuntimeError, match="shape '\\[7\\]' is invalid"):
        runner(tiles(4))


SYMMETRIES = [
    lambda array, quarters=quarters, mirrored=mirrored: np.rot90(
        array[..., ::-1] if mirrored else array, quarters, (-2, -1)
    )
    for quarters in range(4)
    for mirrored in (False, True)
]


@pytest.mark.parametrize(("height", "width"), [(12, 12), (12, 20)])
def test_augmented_probabilities_turn_with_the_tile(height, width):
    tile = tiles(1, height, width)[0]
    runner = TorchRunner(Model(mixed), CPU, "fp32", tta=True)
    found = runner([tile])[0].numpy()
    for turn in SYMMETRIES:
        turned = runner([Tile(turn(tile.pixels), turn(tile.valid))])[0].numpy()
        np.testing.assert_allclose(turned, turn(found), rtol=0, atol=1e-6)
    assert np.abs(found - expected(tile).numpy()).max() > 0.05, "the network has a direction"
    np.testing.assert_allclose(found.sum(axis=0), 1, rtol=0, atol=1e-6)


def test_augmentation_is_a_mean_over_eight_looks():
    """Each look says something else, whatever it sees."""
    looks = []

    def blind(pixels, valid, precision):
        looks.append(torch.linspace(0, len(looks), 3).view(1, 3, 1, 1).expand(1, 3, *pixels.shape[-2:]))
        return looks[-1]

    found = TorchRunner(Model(blind), CPU, "fp32", tta=True)(tiles(1))
    assert len(looks) == 8
    mean = torch.stack([look[0, :, 0, 0].softmax(dim=0) for look in looks]).mean(dim=0)
    torch.testing.assert_close(found, mean.view(1, 3, 1, 1).expand(found.shape))


@pytest.mark.parametrize("kind", TASKS)
def test_agreement_is_the_share_of_valid_pixels_decided_alike_in_all_targets(kind):
    task = TASKS[kind]
    different = np.zeros((12, 20), dtype=bool)
    different[2, :5] = True

    def split(pixels, valid, precision):
        logits = pixels.new_full((len(pixels), task.channels, *pixels.shape[-2:]), -1.0)
        if precision == "bf16":
            height, width = pixels.shape[-2:]
            logits[:, 1] += 9 * torch.from_numpy(different[:height, :width])
        return logits

    model = Model(split, task)
    valid = np.ones((12, 20), dtype=bool)
    valid[2, 0] = valid[5] = False
    pixels = np.zeros((2, 12, 20), dtype=np.float32)
    smaller = Tile(pixels[:, :4, :3], valid[:4, :3])
    assert precision_agreement(model, CPU, [Tile(pixels, valid)]) == pytest.approx(1 - 4 / (220 - 1))
    assert precision_agreement(model, CPU, iter([Tile(pixels, valid), smaller])) == pytest.approx(1 - 6 / (219 + 11))
    assert precision_agreement(model, CPU, [Tile(pixels, ~different & valid)]) == 1
    assert precision_agreement(model, CPU, [Tile(pixels, valid & False)]) is None
    assert precision_agreement(model, CPU, []) is None


def test_memory_is_counted_where_most_tensors_live_at_once():
    weight = torch.ones(1000, 1000)

    def hungry(pixels, valid, precision):
        bytes_each = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        targets = lambda count: torch.zeros(len(pixels), count, *pixels.shape[-2:], dtype=bytes_each)  # noqa: E731
        first = targets(100)
        second = targets(200).add_(1)  # in place
        view = second[:, :50].mT  # nothing of its own
        del first
        third = targets(50)
        weight.t()
        return (third[:, :3] + view.mT[:, :3]).float()

    given = 2 * 4 + 1  # pixels and valid
    assert bytes_per_pixel(Model(hungry), "fp32") == pytest.approx(given + 4 * 300, abs=1)
    assert bytes_per_pixel(Model(hungry), "bf16") == pytest.approx(given + 2 * 300, abs=1)


def test_memory_is_measured_in_the_windows_that_a_network_takes():
    sides = []

    def seeing(pixels, valid, precision):
        sides.append(pixels.shape[-2:])
        return mixed(pixels, valid)

    bytes_per_pixel(Model(seeing, fixed_window_size=96), "fp32")
    assert sides == [(96, 96)]


def test_memory_of_the_raster_outputs_is_counted():
    """More channels of a small network, and what is computed from them, need more memory for a pixel than it does."""
    plain = bytes_per_pixel(Model(mixed), "fp32")
    assert bytes_per_pixel(Model(mixed), "fp32", [OutputRequest("map"), OutputRequest("applicability")]) >= plain + 4
    uncertain = bytes_per_pixel(Model(mixed), "fp32", [OutputRequest("uncertainty", ("entropy",))])
    disagreeing = bytes_per_pixel(Model(mixed), "fp32", [OutputRequest("uncertainty", ("entropy", "disagreement"))])
    assert plain < uncertain < disagreeing


def test_outputs_of_a_large_network_need_no_more_than_its_features(tmp_path):
    model = segmenter(tmp_path)
    outputs = [OutputRequest("map"), OutputRequest("uncertainty", ("margin",))]
    assert bytes_per_pixel(model, "fp32", outputs) == bytes_per_pixel(model, "fp32")


def test_memory_of_a_network_is_seen_whole(tmp_path):
    """At its full size a U-Net holds at least one layer's input and output."""
    model = segmenter(tmp_path)
    exact, rounded = bytes_per_pixel(model, "fp32"), bytes_per_pixel(model, "bf16")
    assert 4 * (8 + 8) < rounded < exact < 1000
    wide = segmenter(tmp_path, options={"encoder_depth": 3, "decoder_channels": [16, 32, 64]})
    assert bytes_per_pixel(wide, "fp32") > 4 * (64 + 64)


def test_multiplications_are_counted():
    # Each of 3 channels sums up 3 x 3 neighbours in 2 bands.
    assert operations_per_pixel(Model(mixed)) == 3 * 2 * 9


@pytest.mark.filterwarnings("ignore:Guards may run slower:RuntimeWarning")  # torch, on Python 3.13.0
def test_a_compiled_network_says_the_same(tmp_path):
    # A few layers in the place of a U-Net: each takes a second to compile.
    model = segmenter(tmp_path)
    model.network = nn.Sequential(
        nn.Conv2d(model.bands, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1)
    ).eval()
    tile = Tile(np.random.default_rng(0).random((model.bands, 64, 64), dtype=np.float32), np.ones((64, 64), dtype=bool))
    plain, compiled = TorchRunner(model, CPU, "fp32"), TorchRunner(model, CPU, "fp32", compiled=True)
    if not can_compile(CPU):
        with pytest.raises(CompilationError):
            compiled([tile])
        return
    # In this process, and for one file without headers compiled in advance and trials of the CPU's instructions.
    from torch._inductor import config

    with config.patch({"compile_threads": 1, "cpp_cache_precompile_headers": False, "cpp.vec_isa_ok": True}):
        torch.testing.assert_close(compiled([tile]), plain([tile]), rtol=0, atol=1e-5)


def test_where_compiling_fails_it_is_reported(tmp_path, monkeypatch):
    def refuse(network, **_):
        def forward(*_):
            raise Unsupported("no compiler")

        network.forward = forward
        return network

    monkeypatch.setattr(torch, "compile", refuse)
    model = segmenter(tmp_path)
    tile = Tile(np.zeros((model.bands, 32, 32), dtype=np.float32), np.ones((32, 32), dtype=bool))
    with pytest.raises(CompilationError):
        TorchRunner(model, CPU, "fp32", compiled=True)([tile])


def machine(folder, files):
    """The root folder of a machine."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def group(path, limit, used, files=0, *, version=2):
    """The files of a control group, in kB."""
    base, most, now, prefix = (
        ("sys/fs/cgroup", "memory.max", "memory.current", "")
        if version == 2
        else ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
    )
    return {
        f"{base}{path}/{most}": f"{limit}\n" if limit == "max" else f"{limit * 1024}\n",
        f"{base}{path}/{now}": f"{used * 1024}\n",
        f"{base}{path}/memory.stat": f"anon 7\n{prefix}inactive_file {files * 1024}\n{prefix}active_file 0\n",
    }


V1 = "12:cpu,cpuacct:/a\n4:memory:/job/7\n1:name=systemd:/x\n0::/\n"
MACHINES = {
    "no groups": ({}, 500),
    "unlimited": ({"proc/self/cgroup": "0::/job\n"} | group("/job", "max", 100), 500),
    "limited": ({"proc/self/cgroup": "0::/job\n"} | group("/job", 300, 100), 200),
    "cached files": ({"proc/self/cgroup": "0::/job\n"} | group("/job", 300, 290, files=150), 160),
    "parent": ({"proc/self/cgroup": "0::/job/7\n"} | group("/job/7", 400, 10) | group("/job", 300, 250), 50),
    "container": ({"proc/self/cgroup": "0::/\n"} | group("", 300, 30), 270),
    "wide": ({"proc/self/cgroup": "0::/job\n"} | group("/job", 9000, 10), 500),
    "overdrawn": ({"proc/self/cgroup": "0::/job\n"} | group("/job", 300, 350), 0),
    "version 1": ({"proc/self/cgroup": V1} | group("/job/7", 300, 280, files=40, version=1), 60),
    "another's group": (
        {"proc/self/cgroup": V1} | group("/job/7", 300, 40, version=1) | group("/a", 20, 10, version=1),
        260,
    ),
    "version 1 in a container": ({"proc/self/cgroup": V1} | group("", 300, 30, version=1), 270),
}


@pytest.mark.parametrize(("files", "kilobytes"), MACHINES.values(), ids=MACHINES)
def test_available_memory_is_what_the_machine_and_its_groups_leave(tmp_path, monkeypatch, files, kilobytes):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=500 * 1024))
    assert available_memory(CPU, machine(tmp_path, files)) == kilobytes * 1024


def test_available_memory_is_known_on_every_system(tmp_path):
    assert 2**20 < available_memory(CPU) < 2**50
    assert available_memory(CPU, tmp_path) > 2**20  # as on a system without /proc


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("tta", [False, True])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_tile_with_a_logit_that_is_not_finite_has_no_probability_at_all(kind, tta, value):
    given = tiles(3)

    def spoilt(pixels, valid, precision):
        logits = mixed(pixels, valid)[:, : TASKS[kind].channels].clone()
        logits[1, -1, 3, 5] = value
        return logits

    found = TorchRunner(Model(spoilt, TASKS[kind]), CPU, "fp32", tta=tta)(given)
    assert found[1].isnan().all()
    assert found[[0, 2]].isfinite().all()


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("spoilt", [("bf16",), ("fp32",), ("bf16", "fp32")])
def test_what_is_not_finite_is_never_decided_alike(kind, spoilt):
    """Both precisions decide all as the first class, and so does a comparison with NaN."""
    task = TASKS[kind]

    def first(pixels, valid, precision):
        logits = pixels.new_full((len(pixels), task.channels, *pixels.shape[-2:]), -1.0)
        logits[:, 0] = 2 if task.is_softmax else -1
        if precision in spoilt and pixels[0, 0, 0, 0] > 0:
            logits[:, -1, 1, 1] = torch.nan
        return logits

    whole = np.ones((12, 20), dtype=bool)
    one, other = (Tile(np.full((2, 12, 20), value, dtype=np.float32), whole) for value in (0, 1))
    assert precision_agreement(Model(first, task), CPU, [one]) == 1
    assert precision_agreement(Model(first, task), CPU, [one, other]) == 0.5
