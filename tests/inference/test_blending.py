import contextlib
import threading
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.windows import Window
from torch import nn

from segkit.errors import RasterError, UsageError
from segkit.inference import device
from segkit.inference import tiling as plan
from segkit.inference.blending import predict_blocks
from segkit.inference.device import pick_device, pick_precision
from segkit.inference.runner_base import NonFiniteLogitsError
from segkit.inference.tiling import plan_tiling
from segkit.inference.torch_runner import TorchRunner
from segkit.io.grid import Grid
from segkit.io.scene import Tile
from segkit.task import LandCoverClass, Task

TASK = Task("multiclass", (LandCoverClass("water", 1), LandCoverClass("forest", 2)))


@dataclass
class MemoryScene:
    """A scene in memory; counts what is read of it."""

    pixels: np.ndarray
    valid: np.ndarray
    reads: list[Window] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)
    bands: tuple[int, ...] = (1, 2)
    broken_from: int | None = None
    unreadable: tuple = ()

    @property
    def grid(self):
        return Grid(*self.valid.shape, Affine(10, 0, 500_000, 0, -10, 9_000_000), None)

    @contextlib.contextmanager
    def open(self):
        self.threads.add(threading.get_ident())
        try:
            yield self
        finally:
            self.threads.add(threading.get_ident())

    def read(self, window):
        self.threads.add(threading.get_ident())
        self.reads.append(window)
        if self.broken_from is not None and len(self.reads) > self.broken_from:
            raise RasterError("block 7 is damaged")
        rows, columns = window.toslices()
        part = Tile(self.pixels[:, rows, columns].copy(), self.valid[rows, columns].copy())
        assert part.valid.shape == (window.height, window.width), "read beyond the rim"
        return part


class Network(nn.Module):
    """A stand-in for a Segmenter; each pixel for itself, of which no-data pixels are 0."""

    def __init__(self, stride=1, task=TASK, bands=2):
        super().__init__()
        self.task, self.stride, self.bands, self.path, self.backend = task, stride, bands, None, "torch"
        self.mix = nn.Conv2d(bands, task.channels, 1)
        weight = torch.linspace(-2, 2, self.mix.weight.numel()).reshape(self.mix.weight.shape)
        self.mix.weight.data = weight.sin() * 3
        self.mix.bias.data = torch.linspace(-0.5, 0.5, task.channels)
        self.seen = []
        self.fixed_window_size, self.receptive_field = None, 0

    def optimized_for_inference(self, device, precision):
        return self.eval().to(device)

    def forward(self, pixels, valid):
        assert pixels.shape[-2] % self.stride == pixels.shape[-1] % self.stride == 0
        self.seen.append((pixels.clone(), valid.clone()))
        return self.mix(pixels.where(valid[:, None], 0.0))


def random_scene(height, width, seed=0, nodata=0.0):
    random = np.random.default_rng(seed)
    valid = random.random((height, width)) >= nodata
    if nodata:  # islands too
        top, left = random.integers(height), random.integers(width)
        valid[top : top + height // 2 + 1, left : left + width // 2 + 1] = False
    return MemoryScene(random.random((2, height, width), dtype=np.float32), valid)


def whole(model, scene):
    """What one pass over the whole scene says, (C, H, W)."""
    with torch.inference_mode():
        pixels, valid = torch.from_numpy(scene.pixels[None]), torch.from_numpy(scene.valid[None])
        return model.task.probabilities(model.mix(pixels.where(valid[:, None], 0.0)))[0].numpy()


def blocks(model, scene, *, tile=1024, overlap=128, ramp=None, batch=1, region=None, bands=None):
    """All blocks of a scene, in one band or in those that `bands` names."""
    runner = TorchRunner(model, torch.device("cpu"), "fp32")
    tiling = plan_tiling(scene.grid, tile, overlap, model.stride, blend_width=ramp)
    for band in bands(tiling) if bands else [tiling.single_band]:
        yield from predict_blocks(runner, scene, tiling, band, batch=batch, region=region)


def assemble(model, scene, **options):
    """Put the blocks together: probabilities (C, H, W), valid (H, W), and how often each pixel came."""
    shape = scene.valid.shape
    probabilities = np.full((model.task.channels, *shape), np.nan, dtype=np.float32)
    valid, times = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=int)
    for block in blocks(model, scene, **options):
        assert block.part == "body"
        rows, columns = block.window.toslices()
        assert block.probabilities.dtype == torch.float32
        assert block.probabilities.shape[1:] == block.valid.shape == (block.window.height, block.window.width)
        probabilities[:, rows, columns] = block.probabilities.numpy()
        valid[rows, columns] = block.valid
        times[rows, columns] += 1
    return probabilities, valid, times


@settings(max_examples=60)
@given(data=st.data())
def test_tiling_is_invisible_to_a_network_without_surroundings(data):
    height, width = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 90))
    stride = data.draw(st.sampled_from([1, 4, 8]))
    overlap = data.draw(st.integers(0, 12))
    tile = data.draw(st.integers(max(stride + 1, 2 * overlap), 40))
    scene = random_scene(height, width, data.draw(st.integers(0, 99)), data.draw(st.sampled_from([0, 0.3, 1])))
    model = Network(stride)
    batch = data.draw(st.integers(1, 4))
    probabilities, valid, times = assemble(model, scene, tile=tile, overlap=overlap, batch=batch)
    assert (times == 1).all()
    np.testing.assert_array_equal(valid, scene.valid)
    np.testing.assert_allclose(probabilities[:, valid], whole(model, scene)[:, valid], rtol=0, atol=1e-6)


class Steps(Network):
    """Says something else in each window, the same at all its pixels."""

    def forward(self, pixels, valid):
        self.seen.append(None)
        level = 4.0 if len(self.seen) * 7 % 3 else -4.0
        return pixels.new_full((len(pixels), 1, *pixels.shape[-2:]), level)


@pytest.mark.parametrize(("height", "width"), [(200, 30), (30, 200), (150, 170)])
def test_windows_that_disagree_meet_in_smooth_ramps(height, width):
    task = Task("binary", (LandCoverClass("forest", 1),), head="sigmoid")
    model = Steps(8, task)
    probabilities, _, _ = assemble(model, random_scene(height, width), tile=64, overlap=16, batch=1)
    low, high = torch.tensor([-4.0, 4.0]).sigmoid().tolist()
    assert probabilities.min() >= low - 1e-6
    assert probabilities.max() <= high + 1e-6
    assert probabilities.max() - probabilities.min() > 0.9
    steepest = np.pi / 2 / 16 * (high - low) + 1e-6
    for axis in (1, 2):
        assert np.abs(np.diff(probabilities, axis=axis)).max(initial=0) <= steepest


def test_no_data_values_have_no_influence():
    scene = random_scene(70, 50, nodata=0.3)
    model = Network(8)
    before, valid, _ = assemble(model, scene, tile=32, overlap=8)
    scene.pixels[:, ~scene.valid] = np.random.default_rng(1).choice([np.nan, 1e30, -7], (2, (~scene.valid).sum()))
    after, _, _ = assemble(model, scene, tile=32, overlap=8)
    np.testing.assert_array_equal(before[:, valid], after[:, valid])


@pytest.mark.parametrize("shape", [(1, 1), (1, 45), (45, 1), (3, 5), (37, 33), (40, 70)])
def test_the_network_sees_the_scene_and_beyond_the_rim_its_reflection(shape):
    scene = random_scene(*shape)
    scene.valid[0, -1] = shape == (1, 1)
    scene.pixels[0] = np.arange(np.prod(shape)).reshape(shape)
    model = Network(8)
    assemble(model, scene, tile=32, overlap=8, batch=1)
    far = [np.pad(np.arange(size), (0, 8), mode="reflect") for size in shape]
    assert model.seen
    for pixels, valid in model.seen:
        first = int(pixels[0, 0, 0, 0])
        top, left = divmod(first, shape[1])
        assert top % 8 == left % 8 == 0
        place = np.ix_(far[0][top : top + pixels.shape[2]], far[1][left : left + pixels.shape[3]])
        np.testing.assert_array_equal(pixels[0, 0], scene.pixels[0][place])
        np.testing.assert_array_equal(valid[0], scene.valid[place])


def test_windows_without_a_valid_pixel_are_not_computed():
    scene = random_scene(96, 200)
    scene.valid[:] = False
    scene.valid[50, 10] = True
    model = Network(8)
    probabilities, valid, times = assemble(model, scene, tile=32, overlap=8, batch=1)
    assert len(model.seen) == 1
    assert (times == 1).all()
    np.testing.assert_array_equal(valid, scene.valid)
    np.testing.assert_allclose(probabilities[:, valid], whole(model, scene)[:, valid], atol=1e-6)


@settings(max_examples=40)
@given(data=st.data())
def test_bands_and_what_they_share_sum_to_the_whole(data):
    """Bands worked by themselves, in any order, give the numbers of one that holds all windows, to the last bit."""
    height, width = data.draw(st.integers(1, 150)), data.draw(st.integers(1, 60))
    scene = random_scene(height, width, data.draw(st.integers(0, 99)), data.draw(st.sampled_from([0, 0.4])))
    overlap = data.draw(st.integers(0, 12))
    tiling = {"tile": data.draw(st.integers(max(9, 2 * overlap), 40)), "overlap": overlap}
    model = Network(8)
    expected, valid, _ = assemble(model, scene, **tiling)
    turns = data.draw(st.randoms(use_true_random=False))

    def bands(tiling):
        some = list(tiling.bands)
        turns.shuffle(some)
        return some

    found = np.zeros_like(expected)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "_MIN_BAND_PIXELS", data.draw(st.integers(1, 4000)))
        patch.setattr(plan, "_MAX_GROUP_COLUMNS", data.draw(st.integers(1, 80)))
        for block in blocks(model, scene, **tiling, bands=bands):
            rows, columns = block.window.toslices()
            found[:, rows, columns] += block.probabilities.numpy()
            np.testing.assert_array_equal(block.valid, scene.valid[rows, columns])
    np.testing.assert_array_equal(found[:, valid], expected[:, valid])


class Square:
    """A region of the scene's upper left."""

    def mask(self, window):
        rows, columns = (np.arange(part.start, part.stop) for part in window.toslices())
        return (rows < 30)[:, None] & (columns < 30)


def test_a_region_bounds_what_is_valid_what_is_read_and_nothing_else():
    scene = random_scene(100, 100)
    model = Network(8)
    probabilities, valid, times = assemble(model, scene, tile=32, overlap=8, region=Square())
    assert (times == 1).all()
    assert valid.sum() == 900
    assert valid[:30, :30].all()
    assert all(window.row_off < 30 and window.col_off < 30 for window in scene.reads)
    assert all(seen[1].all() for seen in model.seen), "the network sees the surroundings of the region"
    np.testing.assert_allclose(probabilities[:, valid], whole(model, scene)[:, valid], atol=1e-6)


def test_batches_do_not_change_the_result():
    scene, model = random_scene(120, 130, nodata=0.2), Network(8)
    one, _, _ = assemble(model, scene, tile=32, overlap=8, batch=1)
    count = len(model.seen)
    many, valid, _ = assemble(model, scene, tile=32, overlap=8, batch=5)
    assert len(model.seen) < 2 * count
    np.testing.assert_allclose(one[:, valid], many[:, valid], atol=1e-6)


def test_the_scene_is_read_in_one_thread_of_its_own():
    scene = random_scene(100, 100)
    assemble(Network(8), scene, tile=32, overlap=8)
    assert len(scene.threads) == 1
    assert threading.get_ident() not in scene.threads


def test_a_damaged_file_is_reported_and_the_thread_ends():
    scene = random_scene(100, 100)
    scene.broken_from = 5
    before = threading.active_count()
    with pytest.raises(RasterError, match="block 7 is damaged"):
        assemble(Network(8), scene, tile=32, overlap=8)
    assert threading.active_count() == before


def test_leaving_early_ends_the_thread():
    scene = random_scene(100, 100)
    before = threading.active_count()
    with contextlib.closing(blocks(Network(8), scene, tile=32, overlap=8)) as some:
        next(some)
    assert threading.active_count() == before
    assert len(scene.threads) == 1, "opened and closed where it was read"
    assert len(scene.reads) <= 4


def test_bf16_is_refused_where_it_would_be_emulated(monkeypatch):
    monkeypatch.setattr(device, "_has_bf16", lambda _: False)
    with pytest.raises(UsageError, match="use auto or fp32"):
        pick_precision("bf16", torch.device("cpu"))
    assert pick_precision("auto", torch.device("cpu")) == "fp32"


def test_unknown_devices_are_refused():
    with pytest.raises(UsageError, match="gpu"):
        pick_device("gpu")
    with pytest.raises(UsageError, match="CUDA devices"):
        pick_device("cuda:99")


class Spoilt(Network):
    """Its logits are not finite in windows in which the first band holds 7."""

    def forward(self, pixels, valid):
        logits = super().forward(pixels, valid)
        return logits.where(~(pixels[:, :1] == 7).any(dim=(2, 3), keepdim=True), torch.inf)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("precision", "advice"), [("bf16", "--precision fp32"), ("fp32", "values range from -3 to 7: ")]
)
def test_a_window_without_finite_logits_is_refused_by_name(batch, precision, advice):
    scene = random_scene(40, 70)
    scene.paths = ["scene.tif"]
    scene.pixels[0, 37, 66], scene.pixels[1, 38, 60] = 7, -3
    tiling = plan_tiling(scene.grid, 32, 0, 8)
    runner = TorchRunner(Spoilt(8), torch.device("cpu"), precision)
    finished = []
    with pytest.raises(NonFiniteLogitsError) as messages:
        finished.extend(predict_blocks(runner, scene, tiling, batch=batch))
    assert str(messages.value).startswith(
        f"scene.tif: in {precision} the network gives NaN or infinite values for the window of rows 16 to 39 and "
        "columns 48 to 69; "
    )
    assert advice in str(messages.value)
    assert all(block.probabilities.isfinite().all() for block in finished)
    scene.pixels[0, 37, 66] = 0
    assert len(list(predict_blocks(runner, scene, tiling, batch=batch))) == 6
