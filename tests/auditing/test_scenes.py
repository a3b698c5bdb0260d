from contextlib import ExitStack
from types import SimpleNamespace

import numpy as np
from rasterio.windows import Window

from segkit.auditing.scenes import open_scenes
from segkit.evaluation.decisions import PredictedProbabilities
from segkit.io.grid import Grid
from segkit.task import IGNORE, LandCoverClass, Task

TASK = Task("multiclass", [LandCoverClass("water", 1), LandCoverClass("forest", 2)])


def test_what_is_stored_is_read_back_and_labels_that_no_model_knows_are_left_out(tmp_path):
    """Blocks of two folds; the second was trained without forest (category 2)."""
    random = np.random.default_rng(0)
    truth = random.integers(-1, 3, (1, 9, 8)).astype(np.int16)
    probabilities = random.dirichlet([1, 1, 1], (9, 8)).transpose(2, 0, 1).astype(np.float32)
    grid = Grid(9, 8, None, None)
    sample = SimpleNamespace(scene=SimpleNamespace(grid=grid, name="a"))
    with ExitStack() as stack:
        (scene,) = open_scenes([sample], TASK, tmp_path, stack)
        for rows, counts in ((slice(0, 5), [[3, 4, 5]]), (slice(5, 9), [[3, 4, 0]])):
            part = truth[:, rows]
            block = PredictedProbabilities(
                Window(0, rows.start, 8, part.shape[1]), part, part, part[0] >= 0, part, probabilities[:, rows]
            )
            scene.store(
                SimpleNamespace(
                    predictor=lambda area, block=block: [block],
                    areas=[SimpleNamespace(sample=sample), SimpleNamespace(sample=None)],
                    examination=SimpleNamespace(statistics=SimpleNamespace(counts=np.array(counts))),
                ),
                lambda step: None,
            )
        expected = truth.copy()
        expected[:, 5:][truth[:, 5:] == 2] = IGNORE
        assert scene.unseen == (truth[:, 5:] == 2).sum()
        (strip,) = scene.strips()
        np.testing.assert_array_equal(strip.labels, expected)
        known = expected[0] != IGNORE
        np.testing.assert_allclose(strip.probabilities[0][:, known], probabilities[:, known], atol=0.5 / 254 + 1e-6)
        labels, decided = scene.crop(Window(2, 3, 4, 5))
        np.testing.assert_array_equal(labels, expected[:, 3:8, 2:6])
        found = known[3:8, 2:6]
        close = np.abs(np.diff(np.sort(probabilities[:, 3:8, 2:6], axis=0)[1:], axis=0)[0]) < 0.01
        assert (decided[0][found & ~close] == probabilities.argmax(axis=0)[3:8, 2:6][found & ~close]).all()
        assert (decided[0][~found] == IGNORE).all()
