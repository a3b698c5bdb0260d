"""Readers of text files take the seeds of tools/fuzz_readers.py, and damaged ones, without an unforeseen error."""

import numpy as np
import pytest
from faults import cuts, flips
from hypothesis import given, settings
from hypothesis import strategies as st
from places import ROOT
from reader_checks import READERS

SEEDS = sorted((ROOT / "tests/faults/seeds").glob("*/*"))


@pytest.mark.parametrize("seed", SEEDS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_seeds_and_their_damages_are_read_or_refused(tmp_path, seed):
    content, random = seed.read_bytes(), np.random.default_rng(0)
    READERS[seed.parent.name](content, tmp_path)
    for _, change in (*cuts(len(content), 3, random), *flips(len(content), 4, random)):
        READERS[seed.parent.name](change(content), tmp_path)


@settings(max_examples=15)
@given(st.sampled_from(SEEDS), st.data())
def test_parts_of_seeds_in_another_order_are_read_or_refused(tmp_path_factory, seed, data):
    """Lines and values that stand where others should."""
    lines = seed.read_bytes().replace(b", ", b",\n").splitlines(keepends=True)
    chosen = data.draw(st.lists(st.sampled_from(lines), max_size=12))
    READERS[seed.parent.name](b"".join(chosen), tmp_path_factory.getbasetemp())


def test_every_reader_has_seeds():
    assert {seed.parent.name for seed in SEEDS} == set(READERS)
