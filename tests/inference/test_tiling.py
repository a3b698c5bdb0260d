from itertools import pairwise

import numpy as np
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st

from segkit.errors import UsageError
from segkit.inference import tiling as plan
from segkit.inference.tiling import Axis, blend_weights, plan_axis, plan_tiling
from segkit.io.grid import Grid


@st.composite
def axes(draw: st.DrawFn) -> tuple[int, int, int, int, Axis]:
    stride = draw(st.sampled_from([1, 2, 7, 32]))
    overlap = draw(st.integers(0, 70))
    tile = draw(st.integers(max(1, 2 * overlap, stride + 1), 300))
    size = draw(st.integers(1, 3000))
    ramp = draw(st.integers(0, overlap) | st.none())
    return size, tile, overlap, stride, plan_axis(size, tile, overlap, stride, blend_width=ramp)


def weights(axis: Axis, size: int) -> np.ndarray:
    """Weight of each window at each pixel, (windows, size)."""
    each = np.zeros((len(axis.spans), size))
    for own, span in zip(each, axis.spans, strict=True):
        own[span.start : span.stop] = 1
        if span.blend_before:
            own[span.start : span.start + span.blend_before] = blend_weights(span.blend_before)
        if span.blend_after:
            own[span.finished_stop : span.stop] = 1 - blend_weights(span.blend_after)
    return each


@given(axes())
def test_weights_of_all_windows_sum_to_one_at_every_pixel(case):
    size, _, _, _, axis = case
    np.testing.assert_allclose(weights(axis, size).sum(axis=0), 1, rtol=0, atol=1e-6)


@given(axes())
def test_at_most_two_windows_speak_for_a_pixel(case):
    size, _, _, _, axis = case
    assert ((weights(axis, size) > 0).sum(axis=0) <= 2).all()


@given(axes())
def test_finished_pixels_cover_the_axis_once_in_order(case):
    size, _, _, _, axis = case
    assert [pixel for span in axis.spans for pixel in range(span.start, span.finished_stop)] == list(range(size))
    assert all(span.start < span.finished_stop for span in axis.spans)


@given(axes())
def test_windows_begin_on_the_stride_and_reach_beyond_the_rim_by_less_than_one(case):
    size, tile, _, stride, axis = case
    assert all(span.origin % stride == 0 for span in axis.spans)
    assert axis.length % stride == 0
    assert axis.length < min(tile, size) + stride
    assert axis.spans[0].origin == 0
    assert 0 <= axis.spans[-1].origin + axis.length - size < stride
    assert all(span.origin < size for span in axis.spans)


@given(axes())
def test_neighbours_share_the_overlap_and_hand_over_in_its_middle(case):
    _, _, overlap, _, axis = case
    for one, following in zip(axis.spans, axis.spans[1:], strict=False):
        end = one.origin + axis.length
        assert end - following.origin >= overlap
        assert one.blend_after == following.blend_before == axis.blend_width <= overlap
        assert following.origin <= following.start
        assert one.stop <= end
        assert abs((following.start - following.origin) - (end - one.stop)) <= 1
        assert following.start + following.blend_before == one.stop


def reached(windows: int, length: int, overlap: int, stride: int) -> int:
    """Pixels that so many windows can cover."""
    return (windows - 1) * ((length - overlap) // stride * stride) + length


@given(axes())
def test_fewer_or_shorter_windows_would_not_do(case):
    size, tile, overlap, stride, axis = case
    windows, longest = len(axis.spans), -(-tile // stride) * stride
    assert reached(windows, axis.length, overlap, stride) >= size
    assert windows == 1 or reached(windows - 1, longest, overlap, stride) < size
    assert axis.length == stride or reached(windows, axis.length - stride, overlap, stride) < size


@given(axes())
def test_fixed_windows_keep_their_length(case):
    size, tile, overlap, stride, axis = case
    fixed = plan_axis(size, tile, overlap, stride, fixed=True)
    assert fixed.length == -(-tile // stride) * stride
    assert len(fixed.spans) == len(axis.spans)
    assert [pixel for span in fixed.spans for pixel in range(span.start, span.finished_stop)] == list(range(size))


def test_the_ramp_is_as_long_as_asked_where_there_is_room():
    assert plan_axis(10_000, 1024, 128, 32).blend_width == 128
    assert plan_axis(10_000, 1024, 128, 32, blend_width=64).blend_width == 64


@given(axes(), axes(), st.integers(1, 2**17), st.integers(1, 2000))
def test_bands_and_groups_are_all_windows_in_order(one, other, pixels, columns):
    tiling = plan.Tiling(one[-1], other[-1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "_MIN_BAND_PIXELS", pixels)
        patch.setattr(plan, "_MAX_GROUP_COLUMNS", columns)
        bands, groups = tiling.bands, tiling.column_groups
    assert [span for band in bands for span in band.spans] == list(one[-1].spans)
    assert [span for group in groups for span in group] == list(other[-1].spans)
    assert [band.index for band in bands] == list(range(len(bands)))
    assert all(len(group) == 1 or group[-1].stop - group[0].start <= columns for group in groups)
    assert len(bands) <= max(1, one[0] * other[0] // pixels)
    if all(span.finished_stop > span.start + span.blend_before for span in one[-1].spans):
        windows = [len(band.spans) for band in bands]
        assert len(bands) == max(1, min(len(one[-1].spans), one[0] * other[0] // pixels))
        assert max(windows) - min(windows) <= 1


@given(axes(), st.integers(1, 2**14))
def test_what_bands_finish_and_what_they_share_cover_the_rows_once(case, pixels):
    tiling = plan.Tiling(case[-1], plan_axis(7, 8, 0, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "_MIN_BAND_PIXELS", pixels)
        bands = tiling.bands
    rows = []
    for band in bands:
        rows += range(band.start - band.spans[0].blend_before, band.start) if band.index else []
        assert band.start < band.stop
        rows += range(band.start, band.stop)
    assert rows == list(range(case[0]))
    for upper, lower in pairwise(bands):
        assert upper.stop == lower.spans[0].start
        assert upper.spans[-1].blend_after == lower.spans[0].blend_before


@given(st.integers(1, 500), st.integers(1, 500))
def test_pixel_cost_is_window_pixels_by_scene_pixels(height, width):
    tiling = plan_tiling(Grid(height, width, Affine.identity(), None), 64, 16, 8)
    windows = len(tiling.rows.spans) * len(tiling.columns.spans)
    assert tiling.pixel_cost == pytest.approx(windows * tiling.rows.length * tiling.columns.length / (height * width))


@pytest.mark.parametrize("size", [1, 31, 32, 33, 256])
def test_a_small_axis_has_one_window_no_larger_than_needed(size):
    axis = plan_axis(size, 256, 64, 32)
    assert len(axis.spans) == 1
    assert axis.length == -(-size // 32) * 32


@pytest.mark.parametrize(("tile", "overlap"), [(0, 0), (64, -1), (64, 33), (32, 16)])
def test_tilings_that_cannot_work_are_refused(tile, overlap):
    with pytest.raises(UsageError, match=f"tile {tile} with overlap {overlap}"):
        plan_axis(1000, tile, overlap, 32)


def test_a_fade_rises_smoothly_and_is_its_own_complement():
    for width in (1, 2, 16):
        rising = blend_weights(width)
        assert (np.diff(rising) > 0).all()
        np.testing.assert_allclose(rising + rising[::-1], 1, atol=1e-6)
    assert 0 < rising[0] < 0.01
