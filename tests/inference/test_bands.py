from itertools import pairwise

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from killing import names
from predicting import TASKS, Network, expected, read, write_scene
from torch import nn

from segkit.errors import RasterError
from segkit.inference import bands as band_module
from segkit.inference import tiling as plan
from segkit.inference.bands import merge_seam, predict_band
from segkit.inference.outputs import OutputRequest
from segkit.inference.summary import sum_counts
from segkit.inference.tiling import plan_tiling
from segkit.inference.torch_runner import TorchRunner
from segkit.io.scene import Scene
from segkit.models.applicability_index import ApplicabilityIndex
from segkit.models.training_pixels import TrainingPixels

MEASURES = ("entropy", "margin", "disagreement")
PLAIN = tuple(map(OutputRequest, ("map", "probabilities", "confidence")))
BLENDED = (*PLAIN, OutputRequest("uncertainty", MEASURES))
INDEX = OutputRequest("applicability")
PRODUCED = (*BLENDED, INDEX)


class Uneasy(Network):
    """Says something else at the rims of its windows."""

    def __init__(self, task):
        super().__init__(task)
        torch.manual_seed(4)
        self.mix = nn.Conv2d(2, task.channels, 5, padding=2)
        self.mix.weight.data *= 6


class Corner:
    """A region: what lies left of and above a diagonal."""

    def mask(self, window):
        rows, columns = (np.arange(part.start, part.stop) for part in window.toslices())
        return rows[:, None] + columns < 70


def index_of(bands=2, seed=0):
    """The index of a made-up model, whose training pixels cover a part of the values of `write_scene`."""
    random = np.random.default_rng(seed)
    groups = [random.normal(middle, 120, (40, bands)).astype(np.float32) for middle in (300, 400, 500)]
    training = TrainingPixels.from_samples(groups, ["uint16"], [(1.0, 0.0)], None)
    return ApplicabilityIndex([training], [np.full(bands, 400, np.float32)])


def worked(model, scene, tiling, folder, *, order=None, region=None, batch=2):
    """Do bands, by default from the top, then the seams; returns each product whole, and the counts of each part."""
    runner, bands = TorchRunner(model, torch.device("cpu"), "fp32", model_entropies=True), tiling.bands
    counts, parts, index = [], {}, index_of()
    for band in order or bands:
        own = folder / f"band{band.index}"
        own.mkdir()
        counts.append(predict_band(runner, scene, tiling, band, own, PRODUCED, batch=batch, region=region, index=index))
        parts[band.start] = own
        strips = {"top.tif"} if band.spans[0].blend_before else set()
        strips |= {"bottom.tif"} if band.spans[-1].blend_after else set()
        assert names(own) == strips | {f"{one.name}.tif" for one in PRODUCED}
    for upper, lower in pairwise(bands):
        if rows := lower.spans[0].blend_before:
            own = folder / f"seam{upper.index}"
            own.mkdir()
            strips = folder / f"band{upper.index}" / "bottom.tif", folder / f"band{lower.index}" / "top.tif"
            row = lower.spans[0].start
            counts.append(merge_seam(*strips, model.task, scene.grid, row, rows, own, PRODUCED))
            parts[row] = own
            assert names(own) == {f"{one.name}.tif" for one in BLENDED}
    whole = {}
    starts = {"applicability": {band.spans[0].start: folder / f"band{band.index}" for band in bands}}
    for one in PRODUCED:
        pieces = [(row, read(file / f"{one.name}.tif")) for row, file in sorted(starts.get(one.name, parts).items())]
        assert [row for row, _ in pieces] == [0, *np.cumsum([piece.shape[1] for _, piece in pieces])[:-1]]
        whole[one.name] = np.concatenate([piece for _, piece in pieces], axis=1)
    return whole, counts


@settings(max_examples=20)
@given(data=st.data())
def test_bands_and_seams_in_any_order_are_the_whole_scene_in_one(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("case")
    task = data.draw(st.sampled_from(TASKS))
    shape = data.draw(st.integers(1, 100)), data.draw(st.integers(1, 60))
    scene = Scene.from_files(write_scene(folder / "scene.tif", *shape, seed=data.draw(st.integers(0, 9))))
    overlap = data.draw(st.integers(0, 12))
    tile = data.draw(st.integers(max(9, 2 * overlap), 40))
    region = data.draw(st.sampled_from([None, Corner()]))
    model, found = Uneasy(task), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "_MAX_GROUP_COLUMNS", data.draw(st.integers(1, 60)))
        patch.setattr(band_module, "_SEAM_CHUNK_COLUMNS", data.draw(st.integers(1, 60)))
        patch.setattr(band_module, "_WRITE_CHUNK_ROWS", data.draw(st.integers(1, 40)))
        for name, pixels in (("one", 2**30), ("many", data.draw(st.integers(1, 2000)))):
            patch.setattr(plan, "_MIN_BAND_PIXELS", pixels)
            tiling = plan_tiling(scene.grid, tile, overlap, model.stride)
            order = list(tiling.bands)
            data.draw(st.randoms(use_true_random=False)).shuffle(order)
            (folder / name).mkdir()
            found[name] = worked(model, scene, tiling, folder / name, order=order, region=region, batch=1)
    (one, counts), (many, several) = found["one"], found["many"]
    assert len(counts) == 1
    for product in PRODUCED:
        np.testing.assert_array_equal(many[product.name], one[product.name])
    assert sum_counts(several)["pixels"] == counts[0]["pixels"]
    for key in ("valid", "outside"):
        assert sum_counts(several)[key] == counts[0][key]
    assert sum_counts(several)["hectares"] == pytest.approx(counts[0]["hectares"], rel=1e-4)
    wanted = scene.read().valid
    if region is not None:
        wanted &= region.mask(scene.grid.full_window)
    assert ((one["map"] != task.nodata) == wanted).all()
    for name in ("probabilities", "confidence", "uncertainty"):
        assert ((one[name] != 255) == wanted).all()
    assert (np.isfinite(one["applicability"]) == wanted).all()
    assert counts[0]["outside"] == (one["applicability"] > index_of().threshold).sum()
    assert counts[0]["valid"] == wanted.sum()


@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.type}-{task.head}-{len(task.classes)}")
def test_counts_are_those_of_the_decisions(tmp_path, monkeypatch, task):
    monkeypatch.setattr(plan, "_MIN_BAND_PIXELS", 1)
    path, model = write_scene(tmp_path / "scene.tif"), Network(task)
    scene = Scene.from_files(path)
    whole, counts = worked(model, scene, plan_tiling(scene.grid, 32, 8, 8), tmp_path)
    assert len(counts) > 4
    values, _, valid = expected(model, path)
    np.testing.assert_array_equal(whole["map"], values)
    targets = values if task.type == "multilabel" else [values[0]] * len(task.legend)
    for row, target in zip(task.legend, targets, strict=True):
        code = 1 if task.type == "multilabel" else row["value"]
        assert sum_counts(counts)["pixels"][row["name"]] == (target == code).sum()
        # 10 m pixels, near to where UTM keeps areas.
        assert sum_counts(counts)["hectares"][row["name"]] == pytest.approx((target == code).sum() / 100, rel=2e-3)
    assert sum_counts(counts)["valid"] == valid.sum()


def test_strips_are_shares_of_probabilities(tmp_path, monkeypatch):
    """Those of two neighbours sum to one over the classes; where nothing is valid they hold no number."""
    monkeypatch.setattr(plan, "_MIN_BAND_PIXELS", 1)
    path, model = write_scene(tmp_path / "scene.tif"), Network()
    scene = Scene.from_files(path)
    tiling = plan_tiling(scene.grid, 32, 8, 8)
    worked(model, scene, tiling, tmp_path)
    _, probabilities, valid = expected(model, path)
    entropy = model.task.entropy(torch.from_numpy(probabilities[None]))[0].numpy()
    channels = np.concatenate([probabilities, entropy])
    for lower in tiling.bands[1:]:
        rows = slice(lower.spans[0].start, lower.start)
        above, below = tmp_path / f"band{lower.index - 1}/bottom.tif", tmp_path / f"band{lower.index}/top.tif"
        with rasterio.open(above) as upper:
            assert upper.dtypes[0] == "float32"
            assert np.isnan(upper.nodata)
        shares = [read(above), read(below)]
        assert all((np.isnan(share) == ~valid[rows]).all() for share in shares)
        assert all((share[:, valid[rows]] > 0).all() for share in shares), "both have a say"
        both = shares[0] + shares[1]
        np.testing.assert_allclose(both[:, valid[rows]], channels[:, rows][:, valid[rows]], rtol=0, atol=1e-6)


def test_progress_is_the_rows_of_the_band(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "_MIN_BAND_PIXELS", 1)
    scene, model, steps = Scene.from_files(write_scene(tmp_path / "scene.tif")), Network(), []
    tiling = plan_tiling(scene.grid, 32, 8, 8)
    runner = TorchRunner(model, torch.device("cpu"), "fp32")
    for band in tiling.bands:
        predict_band(runner, scene, tiling, band, tmp_path, PLAIN, batch=1, advance=steps.append)
    assert sum(steps) == pytest.approx(70 * 90 / 1e6)


def test_a_damaged_scene_is_reported(tmp_path):
    path = write_scene(tmp_path / "scene.tif")
    scene = Scene.from_files(path)
    path.write_bytes(path.read_bytes()[:700])
    tiling = plan_tiling(scene.grid, 32, 8, 8)
    runner = TorchRunner(Network(), torch.device("cpu"), "fp32")
    with pytest.raises(RasterError, match=r"scene\.tif"):
        predict_band(runner, scene, tiling, tiling.single_band, tmp_path, PLAIN, batch=1)
