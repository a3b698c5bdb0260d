from dataclasses import replace

import numpy as np
import pytest
import rasterio
from broken_blocks import BLOCK, break_block, lost_pixels, write_blocks
from fault_cases import SCENES, write_scene
from faults import cuts, flips
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.windows import Window

from segkit.errors import SegkitError, UnreadableError
from segkit.io.derived_bands import BandFormula
from segkit.io.grid import Grid
from segkit.io.layers import Layer
from segkit.io.mosaic import Mosaic
from segkit.io.quality_mask import MaskRule, QualityMask
from segkit.io.scene import Scene
from segkit.io.unreadable import UnreadableBlock, UnreadableGround, blocks_from_json, blocks_to_json

SHAPE = 56, 70


def pixels(seed=0, bands=2, shape=SHAPE, dtype=np.uint16):
    return np.random.default_rng(seed).integers(1, 250, (bands, *shape)).astype(dtype)


def skipping(scene):
    return replace(scene, skip_unreadable=True)


def in_parts(scene, side=20):
    """Read a scene window by window, from the last to the first; return pixels, valid, and the lost blocks."""
    whole = np.empty((len(scene.bands), *scene.grid.shape), np.float32), np.empty(scene.grid.shape, bool)
    with scene.open() as reader:
        for window in reversed([*scene.grid.tiles(side)]):
            tile = reader.read(window)
            whole[0][:, *window.toslices()], whole[1][window.toslices()] = tile.pixels, tile.valid
        return *whole, reader.unreadable


def assert_lost(scene, whole, lost):
    """Assert that a scene is that of a tile without the lost pixels, and that only these are lost."""
    tile = skipping(scene).read()
    np.testing.assert_array_equal(tile.valid, whole.valid & ~lost)
    np.testing.assert_array_equal(tile.pixels, np.where(lost, np.nan, whole.pixels))
    values, valid, blocks = in_parts(skipping(scene))
    np.testing.assert_array_equal(values, tile.pixels)
    np.testing.assert_array_equal(valid, tile.valid)
    ground = UnreadableGround.from_blocks(blocks, scene.grid)
    assert (ground.pixels, ground.blocks) == (lost.sum(), len(blocks))
    assert ground.hectares == pytest.approx(scene.grid.hectares()[lost].sum(), rel=1e-6)
    with pytest.raises(UnreadableError, match=r"cannot be read at rows \d+ to .*copy it again, or map .* nodata"):
        scene.read()


def test_exactly_the_lost_blocks_are_no_data(tmp_path):
    """Of two files and a quality band, at other places each."""
    for number, name in enumerate("ab"):
        write_blocks(tmp_path / f"{name}.tif", pixels(number))
    write_blocks(tmp_path / "q.tif", pixels(2, bands=1, dtype=np.uint8), nodata=None)
    mask = QualityMask(MaskRule(values=(3,)), file="q.tif")
    scene = Scene.from_files([tmp_path / "a.tif", tmp_path / "b.tif"], mask=mask)
    whole = scene.read()
    assert skipping(scene).read().pixels.tobytes() == whole.pixels.tobytes()
    break_block(tmp_path / "a.tif", 1, 2)
    break_block(tmp_path / "b.tif", 1, 2)
    break_block(tmp_path / "b.tif", 3, 4)  # at the edge, where blocks are not whole
    break_block(tmp_path / "q.tif", 0, 0)
    assert_lost(scene, whole, lost_pixels(SHAPE, (1, 2), (3, 4), (0, 0)))


def test_inputs_of_indices_and_masks_are_looked_at(tmp_path):
    """A band that is only an input of an index, and the mask of a file."""
    write_blocks(tmp_path / "a.tif", pixels(), nodata=None)
    with rasterio.open(tmp_path / "a.tif", "r+") as dataset:
        dataset.write_mask(np.random.default_rng(1).random(SHAPE) < 0.9)
    write_blocks(tmp_path / "b.tif", pixels(1), nodata=None)
    index = BandFormula("ratio", "x / y", (("x", 1), ("y", 4)))
    scene = Scene.from_files([tmp_path / "a.tif", tmp_path / "b.tif"], bands=[1, 2], indices=[index])
    whole = scene.read()
    break_block(tmp_path / "b.tif", 2, 1)
    assert_lost(scene, whole, lost_pixels(SHAPE, (2, 1)))


def test_on_another_grid_the_ground_of_the_blocks_is_no_data(tmp_path):
    """A file and a quality band of pixels twice as large, and a layer in another CRS."""
    write_blocks(tmp_path / "a.tif", pixels())
    half = SHAPE[0] // 2, SHAPE[1] // 2
    write_blocks(tmp_path / "b.tif", pixels(1, shape=half), size=20, nodata=None)
    write_blocks(tmp_path / "q.tif", pixels(2, 1, half, np.uint8), size=20, nodata=0)
    files = [tmp_path / "a.tif", tmp_path / "b.tif"]
    scene = Scene.from_files(files, resample=True, mask=QualityMask(MaskRule(values=(3,)), file="q.tif"))
    whole = scene.read()
    for name, row, column in (("b", 0, 1), ("q", 1, 0)):
        break_block(tmp_path / f"{name}.tif", row, column)
    tile = skipping(scene).read()
    lost = lost_pixels((28, 35), (0, 1), (1, 0)).repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_array_equal(tile.valid, whole.valid & ~lost)
    near = lost.copy()  # bilinear: a pixel beside a lost block has no other half
    near[1:] |= lost[:-1]
    near[:-1] |= lost[1:]
    near[:, 1:] |= near[:, :-1] | lost[:, :-1]
    near[:, :-1] |= near[:, 1:] | lost[:, 1:]
    np.testing.assert_array_equal(tile.pixels[:, ~near], whole.pixels[:, ~near])
    values, valid, blocks = in_parts(skipping(scene))
    np.testing.assert_array_equal(values, tile.pixels)
    np.testing.assert_array_equal(valid, tile.valid)
    assert UnreadableGround.from_blocks(blocks, scene.grid).pixels == lost.sum()


def test_a_layer_in_another_crs(tmp_path):
    write_blocks(tmp_path / "a.tif", pixels())
    with rasterio.open(tmp_path / "a.tif") as dataset:
        west, _, east, north = rasterio.warp.transform_bounds("EPSG:32622", "EPSG:4326", *dataset.bounds)
    side = (east - west) / 40
    layer = pixels(1, bands=1, shape=(44, 44), dtype=np.float32)
    write_blocks(tmp_path / "l.tif", layer, left=west - side, top=north + side, size=side, crs="EPSG:4326", nodata=-1)
    scene = Scene.from_files(tmp_path / "a.tif", layers=[Layer("height", tmp_path / "l.tif")])
    whole = scene.read()
    break_block(tmp_path / "l.tif", 1, 1)
    tile = skipping(scene).read()
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]] + 0.5
    x, y = rasterio.warp.transform(
        "EPSG:32622", "EPSG:4326", (500_000 + 10 * columns).ravel(), (9_000_000 - 10 * rows).ravel()
    )
    in_layer = [(np.reshape(x, SHAPE) - west) / side + 1, (north - np.reshape(y, SHAPE)) / side + 1]
    lost = np.logical_and(*((at >= BLOCK) & (at < 2 * BLOCK) for at in in_layer))
    near = np.logical_and(*((at >= BLOCK - 1) & (at < 2 * BLOCK + 1) for at in in_layer))
    assert (tile.valid == (whole.valid & ~lost)).mean() > 0.999  # but for pixels on the edge
    np.testing.assert_allclose(tile.pixels[:, ~near], whole.pixels[:, ~near], rtol=1e-6)
    values, valid, _ = in_parts(skipping(scene))
    np.testing.assert_array_equal(values, tile.pixels)
    np.testing.assert_array_equal(valid, tile.valid)


def test_a_mosaic_loses_the_blocks_of_its_files(tmp_path):
    """One file has another grid of blocks than the next, and is not where it is."""
    whole = pixels(shape=(48, 64))
    (tmp_path / "tiles").mkdir()
    write_blocks(tmp_path / "tiles/a.tif", whole[:, :, :40])
    write_blocks(tmp_path / "tiles/b.tif", whole[:, :, 40:], left=500_400)
    scene = Scene.from_files(Mosaic(tmp_path / "tiles"))
    tile = scene.read()
    break_block(tmp_path / "tiles/b.tif", 1, 0)
    break_block(tmp_path / "tiles/a.tif", 1, 2)
    lost = np.zeros((48, 64), bool)
    lost[16:32, 32:56] = True
    assert_lost(scene, tile, lost)


@pytest.mark.parametrize("name", [name for name in SCENES if name != "scene.dat"])  # which has the size it declares
def test_what_is_left_of_a_cut_file_is_right(tmp_path, name):
    """Also after an error, when decoders may give other pixels without one; flips are found or not."""
    path = write_scene(tmp_path / name, **SCENES[name])
    whole, content, random = Scene.from_files(path).read(), path.read_bytes(), np.random.default_rng(0)
    for damage, change in [*cuts(len(content), 5, random), *flips(len(content), 3, random)]:
        path.write_bytes(change(content))
        try:
            values, valid, _ = in_parts(skipping(Scene.from_files(path)), 16)
        except SegkitError:
            continue
        if damage.startswith("cut"):
            np.testing.assert_array_equal(values[:, valid], whole.pixels[:, valid])


def test_damage_that_a_decoder_only_warns_of(tmp_path):
    """The second half of a JPEG block is missing; GDAL fills in pixels."""
    path = tmp_path / "a.tif"
    write_blocks(path, pixels(bands=1, dtype=np.uint8), nodata=None, compress="jpeg")
    whole = Scene.from_files(path).read()
    break_block(path, 1, 2, share=0.5)
    lost = lost_pixels(SHAPE, (1, 2))
    assert_lost(Scene.from_files(path), whole, lost)
    tile = skipping(Scene.from_files(path)).read(Window(0, 0, 48, 32))  # the damaged block is the last one
    np.testing.assert_array_equal(tile.valid, ~lost[:32, :48])


PLACES = st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(1, 9), st.integers(1, 9))


@settings(max_examples=25)
@given(st.lists(PLACES, max_size=6))
def test_ground_is_counted_once(places):
    grid = Grid(30, 30, rasterio.Affine(10, 0, 5e5, 0, -10, 9e6), rasterio.CRS.from_epsg(32622))
    lost = np.zeros(grid.shape, bool)
    for row, column, height, width in places:
        lost[row : row + height, column : column + width] = True
    blocks = [UnreadableBlock(f"{number}.tif", (0, 0, 1, 1), place) for number, place in enumerate(places)]
    ground = UnreadableGround.from_blocks(blocks_from_json(blocks_to_json(blocks * 2)), grid)
    if not places:
        assert ground is None
        return
    assert (ground.blocks, ground.pixels) == (len(places), lost.sum())
    assert ground.hectares == pytest.approx(grid.hectares()[lost].sum(), rel=1e-6)
    assert ground.first == "0.tif, rows 0 to 1, columns 0 to 1"


def test_a_window_beyond_the_scene(tmp_path):
    path = write_blocks(tmp_path / "a.tif", pixels())
    scene = skipping(Scene.from_files(path))
    whole = scene.read(Window(-5, -5, 30, 30))
    break_block(path, 0, 0)
    tile = scene.read(Window(-5, -5, 30, 30))
    lost = np.zeros((30, 30), bool)
    lost[5:21, 5:21] = True
    np.testing.assert_array_equal(tile.valid, whole.valid & ~lost)
