import copy
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from killing import names
from predicting import FAST, Network, expected, read, write_scene
from torch import nn

from segkit.errors import SegkitError, UsageError
from segkit.inference import device, tasks, torch_runner
from segkit.inference import settings as choice
from segkit.inference import tiling as plan
from segkit.inference.blending import predict_blocks
from segkit.inference.outputs import OutputRequest
from segkit.inference.predict import predict
from segkit.inference.runner import bytes_per_pixel
from segkit.inference.runner_base import OutOfMemoryError
from segkit.inference.settings import OVERLAP, TILE, PredictOptions, ResolvedSettings, resolve_settings
from segkit.inference.torch_runner import TorchRunner
from segkit.io.scene import Scene
from segkit.task import LandCoverClass, Task

CPU = torch.device("cpu")


class Far(Network):
    """Sees `reach` pixels far by as many 3 x 3 convolutions; beyond its window it sees zeros."""

    def __init__(self, reach, stride=1):
        super().__init__(Task("multiclass", (LandCoverClass("water", 4), LandCoverClass("forest", 9))))
        torch.manual_seed(1)
        widths = [2, *[3] * reach]
        convolutions = [nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths)]
        for convolution in convolutions:
            convolution.weight.data *= 2
        self.mix = nn.Sequential(*[layer for one in convolutions for layer in (one, nn.Tanh())], nn.Conv2d(3, 3, 1))
        self.mix[-1].weight.data *= 5
        self.receptive_field, self.stride = reach, stride
        self.sizes = set()

    def forward(self, pixels, valid):
        self.sizes.add(tuple(pixels.shape[-2:]))
        return super().forward(pixels, valid)


def pooling(context=32):
    """A network that looks at all of its window."""
    model = Far(1, stride=8)
    model.receptive_field, model.fixed_window_size = None, context
    model.recipe = SimpleNamespace(model=SimpleNamespace(architecture="pspnet"))
    return model


def one_pass(model, scene):
    """Probabilities of one pass over the whole scene, which is reflected up to the network's stride."""
    tile = scene.read()
    beyond = [(0, -size % model.stride) for size in tile.valid.shape]
    pixels = torch.from_numpy(np.pad(tile.pixels, ((0, 0), *beyond), mode="reflect"))[None]
    valid = torch.from_numpy(np.pad(tile.valid, beyond, mode="reflect"))[None]
    with torch.inference_mode():
        found = model.task.probabilities(model(pixels, valid))[0].numpy()
    return found[:, : tile.valid.shape[0], : tile.valid.shape[1]]


def tiled(model, scene, options):
    """Probabilities as `options` tile them."""
    made = resolve_settings(model, scene, options)
    tiling = made.tiling(scene.grid, model.stride)
    found = np.full((model.task.channels, *scene.grid.shape), np.nan, dtype=np.float32)
    for block in predict_blocks(TorchRunner(model, CPU, made.precision), scene, tiling, batch=1):
        rows, columns = block.window.toslices()
        found[:, rows, columns] = block.probabilities.numpy()
    return found


@settings(max_examples=30)
@given(data=st.data())
def test_exact_is_one_pass_over_the_whole_scene(data, tmp_path_factory):
    reach, stride = data.draw(st.integers(1, 4)), data.draw(st.sampled_from([1, 4, 8]))
    height, width = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 90))
    overlap = data.draw(st.sampled_from([None, 0, 14]))
    least = max(2 * (reach + 1), overlap or 0)
    tile = data.draw(st.integers(2 * least, 45)) + stride
    scene = Scene.from_files(write_scene(tmp_path_factory.mktemp("case") / "scene.tif", height, width))
    model = Far(reach, stride)
    found = tiled(model, scene, PredictOptions(tile, overlap, exact=True, device="cpu"))
    valid = scene.read().valid
    np.testing.assert_allclose(found[:, valid], one_pass(model, scene)[:, valid], rtol=0, atol=1e-6)


def test_without_exact_a_small_overlap_shows(tmp_path):
    scene = Scene.from_files(write_scene(tmp_path / "scene.tif"))
    model, valid = Far(3), scene.read().valid
    whole = one_pass(model, scene)
    for exact, shows in ((False, True), (True, False)):
        found = tiled(model, scene, PredictOptions(32, 2, exact=exact, precision="fp32", device="cpu"))
        assert (np.abs(found - whole)[:, valid].max() > 1e-3) == shows


def test_exact_maps_of_several_bands_are_those_of_one_pass(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "_MIN_BAND_PIXELS", 1)
    monkeypatch.setattr(plan, "_MAX_GROUP_COLUMNS", 40)
    path = write_scene(tmp_path / "scene.tif")
    model, scene = Far(3, stride=4), Scene.from_files(path)
    options = FAST | {"overlap": None, "precision": "auto"}
    [summary] = predict(model, path, tmp_path / "map.tif", probabilities=tmp_path / "p.tif", exact=True, **options)
    assert summary.bands > 2
    assert summary.choice.precision == "fp32"
    valid = scene.read().valid
    found, whole = read(tmp_path / "p.tif")[:, valid] / 254, one_pass(model, scene)[:, valid]
    np.testing.assert_allclose(found, whole, rtol=0, atol=0.5 / 254 + 1e-6)


def test_exact_takes_the_halo_that_the_network_needs(tmp_path):
    scene = Scene.from_files(write_scene(tmp_path / "scene.tif"))
    for reach, tile in ((10, TILE), (500, 2004)):
        model = Far(1)
        model.receptive_field = reach
        made = resolve_settings(model, scene, PredictOptions(exact=True, device="cpu"))
        assert (made.tile, made.overlap, made.ramp, made.fixed) == (tile, 2 * (reach + 1), 0, False)


def test_exact_is_refused_where_it_cannot_be_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "_has_bf16", lambda _: True)
    scene = write_scene(tmp_path / "scene.tif")
    with pytest.raises(UsageError, match="bf16 rounds differently"):
        predict(Far(3), scene, tmp_path / "map.tif", exact=True, precision="bf16", device="cpu")
    with pytest.raises(UsageError, match=r"tile 15 was asked for, but exact needs at least 16: .* reaches 3 pixels"):
        predict(Far(3), scene, tmp_path / "map.tif", exact=True, tile=15, device="cpu")
    with pytest.raises(UsageError, match="network pspnet pools over its whole window"):
        predict(pooling(), scene, tmp_path / "map.tif", exact=True, device="cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["scene.tif"]


@pytest.mark.parametrize("shape", [(1, 100), (5, 100), (32, 32), (70, 91)])
def test_a_network_that_pools_is_given_the_windows_it_was_trained_with(tmp_path, shape):
    scene, model = write_scene(tmp_path / "scene.tif", *shape, seed=1), pooling()
    with pytest.warns(UserWarning, match="pools over its whole window, so it gets windows of 32 pixels") as messages:
        [summary] = predict(model, scene, tmp_path / "map.tif", precision="fp32", device="cpu")
    assert len(messages) == 1
    assert model.sizes == {(32, 32)}
    assert (summary.choice.tile, summary.choice.fixed) == (32, True)
    again = pooling()
    predict(again, scene, tmp_path / "map.tif", precision="fp32", device="cpu")  # and says nothing: nothing is done
    assert again.calls == 0
    with pytest.warns(UserWarning, match="pools"):
        predict(pooling(), scene, tmp_path / "named.tif", tile=32, precision="fp32", device="cpu")
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), read(tmp_path / "named.tif"))


def test_a_network_that_pools_gets_no_other_tile(tmp_path, monkeypatch):
    scene = write_scene(tmp_path / "scene.tif")
    with pytest.raises(UsageError, match=r"tile 48 was asked for, but .* was trained with 32 pixels"):
        predict(pooling(), scene, tmp_path / "map.tif", tile=48, device="cpu")
    monkeypatch.setattr(choice, "available_memory", lambda _: 0)
    assert (
        resolve_settings(pooling(), Scene.from_files(scene), PredictOptions(precision="fp32", device="cpu")).tile == 32
    )


class Rounding(Network):
    """Decides otherwise in bf16 where the first band holds 2000."""

    def __init__(self):
        super().__init__()
        self.rounds, self.asked = False, []

    def optimized_for_inference(self, device, precision):
        self.asked.append(precision)
        prepared = copy.deepcopy(self).eval()
        prepared.rounds = precision == "bf16"
        return prepared

    def forward(self, pixels, valid):
        logits = super().forward(pixels, valid)
        return logits.where(pixels[:, :1] != 2000, -logits) if self.rounds else logits


def marked(path, count):
    """A scene of which so many valid pixels are decided otherwise in bf16; returns the share of the others."""
    write_scene(path)
    with rasterio.open(path, "r+") as dataset:
        pixels = dataset.read()
        rows, columns = np.nonzero(pixels.all(axis=0))
        some = np.random.default_rng(3).choice(len(rows), count, replace=False)
        pixels[0, rows[some], columns[some]] = 2000
        dataset.write(pixels)
    return 1 - count / len(rows)


@pytest.mark.parametrize(("count", "precision"), [(0, "bf16"), (3, "bf16"), (9, "fp32"), (3000, "fp32")])
def test_bf16_is_taken_where_it_decides_as_fp32_does(tmp_path, monkeypatch, count, precision):
    monkeypatch.setattr(device, "_has_bf16", lambda _: True)
    scene = tmp_path / "scene.tif"
    share = marked(scene, count)
    assert (share >= 0.999) == (precision == "bf16")
    [summary] = predict(Rounding(), scene, tmp_path / "map.tif", device="cpu")
    assert summary.choice.precision == precision
    assert summary.choice.agreement == pytest.approx(share)
    with rasterio.open(tmp_path / "map.tif") as found:
        assert found.tags()["segkit_precision"] == precision
        assert found.tags()["segkit_agreement"] == f"{share:.6f}"
    differs = read(tmp_path / "map.tif") != expected(Rounding(), scene)[0]
    assert differs.sum() == (count if precision == "bf16" else 0)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_precision_that_was_asked_for_is_not_tested(tmp_path, monkeypatch, precision):
    monkeypatch.setattr(device, "_has_bf16", lambda _: True)
    marked(tmp_path / "scene.tif", 3000)
    model = Rounding()
    options = {"precision": precision, "device": "cpu", "tile": 64}
    [summary] = predict(model, tmp_path / "scene.tif", tmp_path / "map.tif", **options)
    assert set(model.asked) == {precision}
    assert (summary.choice.precision, summary.choice.agreement) == (precision, None)
    with rasterio.open(tmp_path / "map.tif") as found:
        assert "segkit_agreement" not in found.tags()


def test_without_bf16_or_without_a_valid_pixel_fp32_is_taken(tmp_path, monkeypatch):
    scene = write_scene(tmp_path / "scene.tif")
    monkeypatch.setattr(device, "_has_bf16", lambda _: False)
    made = resolve_settings(Rounding(), Scene.from_files(scene), PredictOptions(device="cpu"))
    assert (made.precision, made.agreement) == ("fp32", None)
    monkeypatch.setattr(device, "_has_bf16", lambda _: True)
    with rasterio.open(scene, "r+") as dataset:
        dataset.write(np.zeros((2, *dataset.shape), dtype=np.uint16))
    made = resolve_settings(Rounding(), Scene.from_files(scene), PredictOptions(device="cpu"))
    assert (made.precision, made.agreement) == ("fp32", None)


@settings(max_examples=50)
@given(megapixels=st.floats(0, 4), overlap=st.none() | st.integers(0, TILE // 2))
def test_the_tile_fits_into_the_memory_but_for_twice_the_overlap(tmp_path_factory, megapixels, overlap):
    scene = Scene.from_files(write_scene(tmp_path_factory.mktemp("case") / "scene.tif"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "bytes_per_pixel", lambda *_: 10)
        patch.setattr(
            choice, "available_memory", lambda device: int(megapixels * 1e6) * 10 / choice._USABLE_MEMORY_SHARE
        )
        made = resolve_settings(Network(), scene, PredictOptions(None, overlap, device="cpu", precision="fp32"))
        named = resolve_settings(Network(), scene, PredictOptions(1000, 160, device="cpu", precision="fp32"))
    assert named.tile == 1000, "what was asked for is tried"
    assert made.overlap == (OVERLAP if overlap is None else overlap)
    least = max(256, 2 * made.overlap)
    assert TILE % made.tile == 0
    assert made.tile >= least
    assert made.tile**2 <= megapixels * 1e6 or made.tile // 2 < least
    assert made.tile == TILE or (2 * made.tile) ** 2 > megapixels * 1e6 - 1, "no smaller than it must be"


def test_the_tile_leaves_memory_for_the_outputs(tmp_path):
    scene = Scene.from_files(write_scene(tmp_path / "scene.tif"))
    outputs = [OutputRequest("map"), OutputRequest("uncertainty", ("entropy", "margin"))]
    options = PredictOptions(device="cpu", precision="fp32")
    with pytest.MonkeyPatch.context() as patch:
        needed = TILE**2 * bytes_per_pixel(Network(), "fp32")
        patch.setattr(choice, "available_memory", lambda device: (needed + 1) / choice._USABLE_MEMORY_SHARE)
        assert resolve_settings(Network(), scene, options).tile == TILE
        assert resolve_settings(Network(), scene, options, outputs=outputs).tile == TILE // 2


def test_a_prediction_tells_its_outputs_to_the_choice_of_the_tile(tmp_path, monkeypatch):
    asked = []
    original = tasks.resolve_settings
    monkeypatch.setattr(
        tasks, "resolve_settings", lambda *given, **more: asked.append(more["outputs"]) or original(*given, **more)
    )
    scene = write_scene(tmp_path / "scene.tif")
    predict(Network(), scene, tmp_path / "map.tif", uncertainty="entropy", **FAST)
    assert [[str(one) for one in outputs] for outputs in asked] == [["map", "uncertainty (entropy)"]]


class Hungry(Network):
    """Has memory for windows of so many pixels along a side, from some call on."""

    def __init__(self, side, after=0, error=None, breaks=None):
        super().__init__()
        self.side, self.after, self.error, self.breaks = side, after, error, breaks

    def forward(self, pixels, valid):
        if self.calls == self.breaks:
            raise self.error
        if self.calls >= self.after and max(pixels.shape[-2:]) > self.side:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return super().forward(pixels, valid)


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(choice, "_MIN_TILE_PX", 16)
    monkeypatch.setattr(plan, "_MIN_BAND_PIXELS", 1)


@pytest.mark.parametrize("after", [0, 3])
def test_a_tile_that_memory_does_not_hold_is_halved_and_the_map_whole(tmp_path, small_tiles, after):
    scene = write_scene(tmp_path / "scene.tif")
    with pytest.warns(
        UserWarning, match="does not fit into the memory of the cpu; .*continuing with tile 32"
    ) as messages:
        [summary] = predict(Hungry(32, after), scene, tmp_path / "map.tif", batch_size=1, **FAST | {"tile": 64})
    assert len(messages) == 1
    assert (summary.choice.tile, summary.resumed) == (32, 0)
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), expected(Network(), scene)[0])
    with rasterio.open(tmp_path / "map.tif") as found:
        assert found.tags()["segkit_tile"] == "32"
    assert names(tmp_path) == {"scene.tif", "map.tif"}


def test_the_smaller_tile_is_remembered(tmp_path, small_tiles):
    scene = write_scene(tmp_path / "scene.tif")
    options = FAST | {"tile": 64, "batch_size": 1}
    breaking = Hungry(32, error=KeyboardInterrupt, breaks=9)
    with pytest.warns(UserWarning, match="continuing with tile 32"), pytest.raises(KeyboardInterrupt):
        predict(breaking, scene, tmp_path / "map.tif", **options)
    [summary] = predict(Hungry(32), scene, tmp_path / "map.tif", **options)  # without a warning
    assert summary.resumed == 2
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), expected(Network(), scene)[0])


def test_memory_that_does_not_hold_the_smallest_tile_is_one_clear_error(tmp_path, small_tiles):
    scene = write_scene(tmp_path / "scene.tif")
    with (
        pytest.warns(UserWarning, match="continuing with"),
        pytest.raises(
            OutOfMemoryError, match=r"a window of 16 x 16 pixels does not fit into the memory of the cpu"
        ) as messages,
    ):
        predict(Hungry(4), scene, tmp_path / "map.tif", **FAST | {"tile": 64})
    assert isinstance(messages.value, SegkitError)
    assert [path.name for path in tmp_path.iterdir()] == ["scene.tif"]


def test_only_memory_makes_tiles_smaller(tmp_path, small_tiles):
    class Faulty(Network):
        def forward(self, pixels, valid):
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        predict(Faulty(), write_scene(tmp_path / "scene.tif"), tmp_path / "map.tif", **FAST | {"tile": 64})


def test_a_smaller_choice_is_half_and_keeps_room_for_the_overlap():
    made = ResolvedSettings(1536, 160, 64, False, "fp32", None, None, False)
    tiles = []
    while made is not None:
        tiles.append(made.tile)
        made = made.halve_tile()
    assert tiles == [1536, 768, 384]
    assert ResolvedSettings(1536, 160, 64, True, "fp32", None, None, False).halve_tile() is None


def test_options_that_are_not_known_are_refused():
    for options, match in (
        (PredictOptions(tta="d8"), "d8"),
        (PredictOptions(batch_size=0), "at least 1"),
        (PredictOptions(precision="fp16"), "fp16"),
        (PredictOptions(device="gpu"), "gpu"),
        (PredictOptions(tile=0), "half of it|at least 1 pixel"),
        (PredictOptions(100, 51), "overlap smaller"),
    ):
        with pytest.raises(UsageError, match=match):
            options.check(Network())


@pytest.mark.parametrize("possible", [True, False])
def test_large_scenes_are_compiled_for_where_that_is_possible(tmp_path, monkeypatch, possible):
    scene, model = Scene.from_files(write_scene(tmp_path / "scene.tif")), Network()
    monkeypatch.setattr(torch_runner, "can_compile", lambda device: possible)
    options = PredictOptions(tile=32, overlap=8, device="cpu", precision="fp32")
    monkeypatch.setattr(torch_runner, "operations_per_pixel", lambda model: choice._MIN_COMPILED_OPERATIONS)
    assert not resolve_settings(model, scene, options).compiled
    monkeypatch.setattr(choice, "_MIN_COMPILED_PIXELS", 70 * 90)
    assert resolve_settings(model, scene, options).compiled == possible
    with monkeypatch.context() as patch:
        patch.setattr(torch_runner, "operations_per_pixel", lambda model: choice._MIN_COMPILED_OPERATIONS - 1)
        assert not resolve_settings(model, scene, options).compiled
    assert not resolve_settings(model, scene, replace(options, exact=True, tile=None)).compiled


@pytest.mark.parametrize(("spoilt", "precision"), [(0, "bf16"), (3000, "fp32")])
def test_bf16_is_measured_once_for_a_model_and_a_size_of_window(tmp_path, monkeypatch, spoilt, precision):
    monkeypatch.setattr(device, "_has_bf16", lambda _: True)
    (tmp_path / "scenes").mkdir()
    share = marked(tmp_path / "scenes/a.tif", spoilt)
    for name in "bcd":
        write_scene(tmp_path / f"scenes/{name}.tif", seed=ord(name))
    monkeypatch.setattr(choice, "available_memory", lambda _: 2**40)  # else it is measured what the network takes
    model = Rounding()
    summaries = predict(model, tmp_path / "scenes", tmp_path / "maps", device="cpu")
    assert model.asked == ["fp32", "bf16", precision]
    assert [one.choice.precision for one in summaries] == [precision] * 4
    assert [one.choice.agreement for one in summaries] == pytest.approx([share] * 4)
    write_scene(tmp_path / "scenes/e.tif", 90, 200)  # its window is a larger one
    del model.asked[:]
    predict(model, tmp_path / "scenes", tmp_path / "others", device="cpu")
    assert model.asked == ["fp32", "bf16", precision, "fp32", "bf16", *(["bf16"] if precision == "fp32" else [])]


def test_a_scene_without_data_measures_nothing_for_others(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "_has_bf16", lambda _: True)
    measured = {}
    empty, full = write_scene(tmp_path / "empty.tif"), write_scene(tmp_path / "full.tif", seed=1)
    with rasterio.open(empty, "r+") as dataset:
        dataset.write(np.zeros((2, *dataset.shape), dtype=np.uint16))
    found = [
        resolve_settings(Rounding(), Scene.from_files(path), PredictOptions(device="cpu"), measured=measured).precision
        for path in (empty, full)
    ]
    assert found == ["fp32", "bf16"]
