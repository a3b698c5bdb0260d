"""Which pixels are drawn: exactly as many as wanted, each with the same chance, whatever blocks the map has."""

import numpy as np
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from maps import NODATA, write_map
from scipy.ndimage import distance_transform_edt

from segkit.assess import sampling
from segkit.assess.sampling import allocate, draw_sample
from segkit.errors import DataError, GridError, UsageError
from segkit.io.grid import Grid
from segkit.maps import class_map as strata_module
from segkit.maps.class_map import open_class_map


@pytest.fixture(scope="module")
def codes():
    """Three classes in blobs, of which one is rare, and no data at a rim."""
    random = np.random.default_rng(0)
    codes = np.kron(random.choice([3, 7], (15, 20)), np.ones((4, 4))).astype(np.uint8)
    codes[20:24, 30:33] = 9
    codes[:, :2] = codes[19, 30:32] = NODATA
    return codes


@pytest.fixture
def pixels_of_one_size(monkeypatch):
    """The areas of pixels are tested elsewhere, and take most of the time of a draw."""
    monkeypatch.setattr(sampling, "point_hectares", lambda grid, rows, columns: [0.01] * len(rows))


@given(st.data())
def test_allocations_are_within_their_bounds(data):
    strata = data.draw(st.integers(1, 6))
    pixels = np.array(data.draw(st.lists(st.integers(0, 5000), min_size=strata, max_size=strata)))
    minimum = data.draw(st.integers(0, 40))
    least = np.minimum(pixels, minimum)
    samples = data.draw(st.integers(int(least.sum()), max(int(pixels.sum()), 0)))
    how = data.draw(st.sampled_from(["proportional", "equal", "neyman"]))
    accuracies = data.draw(st.lists(st.floats(0, 1), min_size=strata, max_size=strata))
    if not pixels.sum():
        return
    given_ = allocate(pixels, samples, how=how, min_per_stratum=minimum, accuracies=accuracies)
    assert given_.sum() == samples
    assert (given_ >= least).all()
    assert (given_ <= pixels).all()
    free = (given_ > least + 1) & (given_ < pixels - 1)
    wanted = {"proportional": pixels, "equal": np.ones(strata)}.get(how)
    if wanted is not None and free.any():
        # But for rounding there is one factor for all that no bound holds.
        assert ((given_ - 1)[free] / wanted[free]).max() < ((given_ + 1)[free] / wanted[free]).min()


def test_known_allocations():
    pixels = [200_000, 150_000, 3_200_000, 6_450_000]
    # Olofsson et al. 2014, table 5: 641 samples; proportional, and with 75 in each of the rare classes.
    assert allocate(pixels, 641).tolist() == [13, 10, 205, 413]
    assert allocate(pixels, 640, how="equal").tolist() == [160] * 4
    assert allocate(pixels, 641, min_per_stratum=75).tolist()[:2] == [75, 75]
    neyman = allocate(pixels, 1000, how="neyman", accuracies=[0.7, 0.6, 0.9, 0.95])
    shares = np.array(pixels) / 1e7 * np.sqrt([0.21, 0.24, 0.09, 0.0475])
    np.testing.assert_allclose(neyman, 1000 * shares / shares.sum(), atol=1)
    for samples, minimum, said in (
        (100, 50, "100 points are too few for 4 strata of at least 50"),
        (10**8, 0, "there are only 10000000 pixels"),
    ):
        with pytest.raises(UsageError, match=said):
            allocate(pixels, samples, min_per_stratum=minimum)


@pytest.mark.parametrize("profile", [{}, {"tiled": True, "blockxsize": 16, "blockysize": 16}, {"blockysize": 1}])
@pytest.mark.parametrize("strip", [1, 500, 10**7])
@pytest.mark.usefixtures("pixels_of_one_size")
def test_a_draw_does_not_depend_on_blocks(codes, tmp_path, monkeypatch, profile, strip):
    def drawn(name, **options):
        with open_class_map(write_map(tmp_path / name, codes, **options), buffer=("9", 25)) as source:
            return draw_sample(source, source.stratum_totals(), [20, 30, 5, 10], seed=3)

    whole = drawn("whole.tif")
    monkeypatch.setattr(strata_module, "_MAX_STRIP_PIXELS", strip)
    again = drawn("blocks.tif", **profile)
    assert whole.equals(again)
    assert whole.groupby("stratum").size().tolist() == [20, 30, 5, 10]
    assert not whole[["row", "col"]].duplicated().any()
    named = np.array([3, 7, 9])[whole["map_class"]]
    np.testing.assert_array_equal(codes[whole["row"], whole["col"]], named)
    away = distance_transform_edt(codes != 9, sampling=10)[whole["row"], whole["col"]]
    stratum = whole["stratum"].to_numpy()
    np.testing.assert_array_equal(stratum == 3, (away > 0) & (away <= 25))
    np.testing.assert_array_equal(stratum[stratum < 3], whole["map_class"].to_numpy()[stratum < 3])
    for column in ("stratum", "row"):  # the order tells nothing
        assert (np.diff(whole[column]) < 0).mean() > 0.2
    other = draw_from(tmp_path / "whole.tif", [20, 30, 5], seed=4)
    assert not other.equals(draw_from(tmp_path / "whole.tif", [20, 30, 5], seed=5))


def draw_from(path, numbers, seed):
    with open_class_map(path) as source:
        return draw_sample(source, source.stratum_totals(), numbers, seed)


@pytest.mark.usefixtures("pixels_of_one_size")
def test_every_pixel_has_the_same_probability(codes, tmp_path):
    """Counts over many draws are binomial: none is out of its bounds, and together they fit chi squared."""
    path, runs = write_map(tmp_path / "map.tif", codes[:20, :24]), 120
    seen = np.zeros((20, 24))
    with open_class_map(path) as source:
        held = [part.pixels for part in source.stratum_totals()]
        numbers = [number // 4 for number in held]
        for seed in range(runs):
            drawn = draw_sample(source, source.stratum_totals(), numbers, seed)
            seen[drawn["row"], drawn["col"]] += 1
    for code, number, all_ in zip((3, 7), numbers, held, strict=True):
        counts, chance = seen[codes[:20, :24] == code], number / all_
        chi = ((counts - runs * chance) ** 2).sum() / (runs * chance * (1 - chance))
        assert abs(chi - len(counts)) < 5 * np.sqrt(2 * len(counts))
    assert seen[codes[:20, :24] == NODATA].sum() == 0


def test_pixels_and_hectares_of_classes_and_strata(codes, tmp_path):
    with open_class_map(write_map(tmp_path / "map.tif", codes)) as source:
        found = {part.name: (part.pixels, part.hectares) for part in source.class_totals()}
        whole = Grid(*codes.shape, Affine(10, 0, 500_000, 0, -10, 9_000_000), source.grid.crs).hectares()
        assert {name: pixels for name, (pixels, _) in found.items()} == {
            str(code): int((codes == code).sum()) for code in (3, 7, 9)
        }
        for code in (3, 7, 9):
            assert found[str(code)][1] == pytest.approx(whole[codes == code].sum(), rel=1e-6)
        assert source.stratum_totals() == source.class_totals()
        assert source.class_names_at(np.array([20, 0]), np.array([30, 0])) == ["9", None]
    with open_class_map(tmp_path / "map.tif", buffer=("9", 25)) as source:
        near = (distance_transform_edt(codes != 9, sampling=10) <= 25) & (codes != 9) & (codes != NODATA)
        buffered = source.stratum_totals()
        assert [part.name for part in buffered] == ["3", "7", "9", "within 25 m of 9"]
        assert buffered[3].pixels == near.sum()
        assert sum(part.pixels for part in buffered) == (codes != NODATA).sum()
        assert buffered[0].pixels == ((codes == 3) & ~near).sum()


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint32"])
def test_codes_of_any_type_and_range(codes, tmp_path, dtype):
    far = {"int16": -30_000, "uint16": 60_000, "int32": -(2**30), "uint32": 2**31}.get(dtype, 100)
    wide = np.where(codes == 9, far, codes.astype(np.int64)).astype(dtype)
    with open_class_map(write_map(tmp_path / "map.tif", wide)) as source:
        found = {part.name: part.pixels for part in source.class_totals()}
        assert found == {str(code): int((wide == code).sum()) for code in sorted((3, 7, far))}
        (strip,) = source.strips()
        named = np.array([*(int(part.name) for part in source.class_totals()), NODATA])
        np.testing.assert_array_equal(named[strip.classes], wide)


def test_maps_that_cannot_be_assessed_are_errors(codes, tmp_path):
    plain = write_map(tmp_path / "map.tif", codes)
    for options, said in (
        ({"class_name": "3"}, "leave out --class"),
        ({"buffer": ("water", 20)}, "has no class 'water' for a buffer; its classes are 3, 7, 9"),
        ({"buffer": ("9", 0)}, "the buffer is 0 m wide; give a positive number"),
    ):
        with pytest.raises(UsageError, match=said), open_class_map(plain, **options):
            pass
    with (
        pytest.raises(DataError, match="all pixels are nodata"),
        open_class_map(write_map(tmp_path / "no.tif", codes * 0 + np.uint8(255))),
    ):
        pass
    with (
        pytest.raises(GridError, match="areas cannot be computed"),
        open_class_map(write_map(tmp_path / "crs.tif", codes, crs=None)),
    ):
        pass
