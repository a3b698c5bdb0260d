"""What a user says about the imagery of a call decides the pixels of its maps, and is part of their request."""

import os

import numpy as np
import pytest
import rasterio
from predicting import FAST, Network, read, write_scene

from segkit.errors import MissingFileError, OutputExistsError, ScenesError, UsageError
from segkit.inference.predict import predict
from segkit.inference.request import given_imagery
from segkit.recipe.imagery import Imagery


@pytest.fixture
def declared(tmp_path):
    return write_scene(tmp_path / "declared.tif")


@pytest.fixture
def plain(tmp_path, declared):
    return changed(declared, tmp_path / "plain.tif", lambda pixels: pixels)


def changed(path, target, change, **profile):
    """Write a changed copy without a declared no-data value."""
    with rasterio.open(path) as dataset:
        profile, pixels = dataset.profile | {"nodata": None} | profile, dataset.read()
    with rasterio.open(target, "w", **profile) as dataset:
        dataset.write(change(pixels))
    return target


def test_undeclared_no_data_is_named_on_the_call(tmp_path, declared, plain):
    """Oracle: the same scene with the declaration."""
    predict(Network(), declared, tmp_path / "expected.tif", **FAST)
    predict(Network(), plain, tmp_path / "map.tif", nodata=0, **FAST)
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), read(tmp_path / "expected.tif"))
    predict(Network(), plain, tmp_path / "without.tif", **FAST)
    assert (read(tmp_path / "without.tif") != read(tmp_path / "expected.tif")).any()


def test_units_on_the_call_replace_those_of_the_model(tmp_path, declared):
    model = Network()
    predict(model, declared, tmp_path / "expected.tif", **FAST)
    shifted = changed(declared, tmp_path / "shifted.tif", lambda pixels: pixels + np.uint16(1000) * (pixels > 0))
    predict(model, shifted, tmp_path / "map.tif", nodata=0, offset=-1000, **FAST)
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), read(tmp_path / "expected.tif"))
    model.imagery = Imagery(offset=-1000)  # of the training
    predict(model, declared, tmp_path / "again.tif", offset=0, scale=[1, 1], **FAST)
    np.testing.assert_array_equal(read(tmp_path / "again.tif"), read(tmp_path / "expected.tif"))
    assert model.imagery == Imagery(offset=-1000)
    with pytest.raises(UsageError, match="a scale of 0"):
        predict(model, declared, tmp_path / "other.tif", scale=0, **FAST)


def test_a_quality_mask_is_found_by_name_for_each_scene(tmp_path, declared):
    clouds = np.random.default_rng(0).choice([4, 9], (70, 90)).astype(np.uint8)
    (tmp_path / "masks").mkdir()
    scenes = [declared, write_scene(tmp_path / "b.tif", seed=3)]
    for path, mask in zip(scenes, (clouds, clouds[::-1]), strict=True):
        target = tmp_path / "masks" / f"{path.stem}_SCL.tif"
        changed(path, target, lambda pixels, mask=mask: mask[None], count=1, dtype="uint8")
    pattern = tmp_path / "masks" / "{name}_SCL.tif"
    predict(Network(), scenes, tmp_path / "clear/", mask=pattern, mask_preset="sentinel2_scl", **FAST)
    predict(Network(), scenes, tmp_path / "all/", **FAST)
    for path, mask in zip(scenes, (clouds, clouds[::-1]), strict=True):
        with (
            rasterio.open(tmp_path / "clear" / path.name) as clear,
            rasterio.open(tmp_path / "all" / path.name) as whole,
        ):
            seen, before = clear.read_masks(1) > 0, whole.read_masks(1) > 0
        np.testing.assert_array_equal(seen, before & (mask == 4))
    # A scene without its mask is reported, and the others are mapped.
    (tmp_path / "masks" / "b_SCL.tif").unlink()
    with pytest.raises(ScenesError, match=r"1 of 2 scenes failed.*\n  .*b\.tif: .*b_SCL\.tif: no such file") as caught:
        predict(Network(), scenes, tmp_path / "some/", mask=pattern, mask_preset="sentinel2_scl", **FAST)
    assert [summary.path for summary in caught.value.summaries] == [tmp_path / "some" / declared.name]
    np.testing.assert_array_equal(read(tmp_path / "some" / declared.name), read(tmp_path / "clear" / declared.name))
    with pytest.raises(UsageError, match="nothing says which values of this mask"):
        predict(Network(), scenes, tmp_path / "other/", mask=pattern, **FAST)


def test_the_request_of_a_map_holds_what_was_said_and_the_file_of_the_mask(tmp_path, plain):
    mask = changed(plain, tmp_path / "mask.tif", lambda pixels: pixels[:1] * 0 + 4, count=1)
    said = {"nodata": 0, "mask": mask, "mask_preset": "sentinel2_scl"} | FAST
    model = Network()
    predict(model, plain, tmp_path / "map.tif", **said)
    calls = model.calls
    predict(model, plain, tmp_path / "map.tif", **said)
    assert model.calls == calls  # the map is finished
    with pytest.raises(OutputExistsError, match=r"made with other settings \(nodata\)"):
        predict(model, plain, tmp_path / "map.tif", **said | {"nodata": 5})
    os.utime(mask, (1, 1))
    with pytest.raises(OutputExistsError, match=r"made with other settings \(scene\)"):
        predict(model, plain, tmp_path / "map.tif", **said)


def test_a_mask_beside_a_scene_is_part_of_it(tmp_path, plain):
    predict(Network(), plain, tmp_path / "map.tif", **FAST)
    changed(plain, tmp_path / "plain.tif.msk", lambda pixels: (pixels[:1] > 500) * np.uint16(255), count=1)
    with pytest.raises(OutputExistsError, match=r"made with other settings \(scene\)"):
        predict(Network(), plain, tmp_path / "map.tif", **FAST)


def test_only_what_is_given_is_part_of_the_request(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert given_imagery() == {}
    assert given_imagery(nodata=(0, 5), offset=1.5) == {"nodata": [0, 5], "offset": 1.5}
    assert given_imagery(mask="{name}.tif") == {"mask": {"file": str(tmp_path / "{name}.tif")}}
    assert given_imagery(mask_preset="fmask") == {"mask": {"preset": "fmask"}}


def test_a_map_does_not_overwrite_a_mask_that_is_read(tmp_path, plain):
    mask = changed(plain, tmp_path / "mask.tif", lambda pixels: pixels[:1] * 0 + 4, count=1)
    before = mask.read_bytes()
    with pytest.raises(UsageError, match=r"mask\.tif would overwrite .*mask\.tif, which is an input"):
        predict(Network(), plain, mask, mask=mask, mask_preset="sentinel2_scl", overwrite=True, **FAST)
    assert mask.read_bytes() == before


def test_indices_and_layers_are_read_as_the_model_says(tmp_path, plain):
    """Oracle: a file with the same values as bands. The layer may be elsewhere, which makes another map of it."""
    with rasterio.open(plain) as dataset:
        profile, (first, second) = dataset.profile | {"count": 1, "dtype": "float32"}, dataset.read().astype(np.float32)
        heights = np.add.outer(np.arange(dataset.height), 7 * np.arange(dataset.width)).astype(np.float32)
    for name in ("dem.tif", "moved/dem.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        with rasterio.open(tmp_path / name, "w", **profile) as dataset:
            dataset.write(heights[None])
    stack = np.stack([first, second, (first - second) / (first + second + 1) * 1000, heights])
    with rasterio.open(tmp_path / "stack.tif", "w", **profile | {"count": 4}) as dataset:
        dataset.write(stack)
    predict(Network(bands=4), tmp_path / "stack.tif", tmp_path / "expected.tif", **FAST)
    model = Network(bands=4)
    index = {"formula": "(a - b) / (a + b + 1) * 1000", "name": "d", "bands": {"a": 1, "b": 2}}
    model.imagery = Imagery.model_validate({"indices": [index], "layers": {"height": str(tmp_path / "dem.tif")}})
    predict(model, plain, tmp_path / "map.tif", **FAST)
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), read(tmp_path / "expected.tif"))
    assert len(np.unique(read(tmp_path / "map.tif"))) > 2
    (tmp_path / "dem.tif").unlink()
    with pytest.raises(MissingFileError, match=r"it is the layer 'height'; name it \(--layer height=FILE\)"):
        predict(model, plain, tmp_path / "other.tif", **FAST)
    moved = {"height": tmp_path / "moved" / "dem.tif"}
    predict(model, plain, tmp_path / "other.tif", layers=moved, **FAST)
    np.testing.assert_array_equal(read(tmp_path / "other.tif"), read(tmp_path / "map.tif"))
    (tmp_path / "moved" / "dem.tif").rename(tmp_path / "new.tif")
    with rasterio.open(tmp_path / "new.tif", "r+") as dataset:
        dataset.write(dataset.read() + 9)
    with pytest.raises(OutputExistsError, match=r"made with other settings \(layers, scene\)"):
        predict(model, plain, tmp_path / "other.tif", layers={"height": tmp_path / "new.tif"}, **FAST)
    with pytest.raises(UsageError, match="without a layer 'dem'; its layers are height"):
        predict(model, plain, tmp_path / "other.tif", layers={"dem": tmp_path / "new.tif"}, **FAST)
