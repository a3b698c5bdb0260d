import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from segkit.models.classical import svm
from segkit.models.classical.svm import SupportVectors
from segkit.training.classical import fit_arrays
from segkit.training.pixels import PixelSample


def pixels(count, classes, seed=0):
    random = np.random.default_rng(seed)
    categories = random.integers(0, classes, count)
    centers = np.random.default_rng(9).normal(0, 300, (classes, 4))
    features = 5000 + centers[categories] + random.normal(0, 250, (count, 4))
    return features.astype(np.float32), (categories + 1).astype(np.int16)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("classes", [2, 4])
def test_decisions_are_those_of_sklearn(classes, weighted, monkeypatch):
    features, categories = pixels(300, classes)
    weights = np.where(categories == 1, 3.0, 1.0) if weighted else None
    learner = SupportVectors(4, 6)
    learner.set_arrays(**fit_arrays(SVC(random_state=0), PixelSample(features, categories, weights, 300), 6))
    scaler = StandardScaler().fit(features.astype(np.float64))
    oracle = SVC(decision_function_shape="ovo").fit(scaler.transform(features), categories, sample_weight=weights)
    tested, _ = pixels(500, classes, seed=1)
    expected = oracle.decision_function(scaler.transform(tested)).reshape(len(tested), -1)
    monkeypatch.setattr(svm, "_MAX_KERNEL_VALUES", 10_000)  # in several parts
    found = learner.decisions(torch.from_numpy(tested)).numpy()
    np.testing.assert_allclose(found, -expected if classes == 2 else expected, atol=2e-3)
    scores = learner(torch.from_numpy(tested)).softmax(dim=1)
    assert (scores[:, [0, *range(classes + 1, 6)]] == 0).all()
    assert (scores.argmax(dim=1).numpy() == oracle.predict(scaler.transform(tested))).mean() > 0.98


def test_probabilities_that_agree_in_pairs_are_found_exactly():
    """Logits of pairs that follow from probabilities: log(p_i / p_j)."""
    p = np.array([0.6, 0.3, 0.1])
    pairs = [(0, 1), (0, 2), (1, 2)]
    learner = SupportVectors(2, 3)
    learner.set_arrays(
        shift=np.zeros(2),
        scale=np.ones(2),
        vectors=np.zeros((1, 2)),
        gamma=np.ones(1),
        pairs=pairs,
        coefficients=np.zeros((3, 1)),
        intercepts=[np.log(p[one] / p[other]) / 2 for one, other in pairs],
        slopes=np.full(3, 2.0),
    )
    np.testing.assert_allclose(learner(torch.randn(1, 2)).exp().numpy()[0], p, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("pairs", lambda array: array + 6, "categories outside 0 to 5"),
        ("vectors", lambda array: array[:, :-1], "vectors has the shape"),
        ("coefficients", lambda array: array[:, :-1], "coefficients has the shape"),
        ("scale", lambda array: array * 0, "scale is not positive"),
        ("slopes", lambda array: array[:-1], "slopes has the shape"),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(name, change, problem):
    learner, other = SupportVectors(4, 6), SupportVectors(4, 6)
    learner.set_arrays(**fit_arrays(SVC(random_state=0), PixelSample(*pixels(60, 3), None, 60), 6))
    other.load_state_dict(learner.state_dict())
    with pytest.raises(RuntimeError, match=problem):
        other.load_state_dict(learner.state_dict() | {name: change(learner.state_dict()[name])})


@pytest.mark.parametrize("gamma", ["scale", "auto", 0.3])
def test_the_width_of_the_kernel_is_that_of_sklearn(gamma):
    features, categories = pixels(100, 2)
    oracle = SVC(gamma=gamma)
    arrays = fit_arrays(oracle, PixelSample(features, categories, None, 100), 4)
    assert oracle.gamma == gamma
    again = SVC(gamma=gamma).fit(((features - arrays["shift"]) / arrays["scale"]).astype(np.float32), categories)
    assert arrays["gamma"].tolist() == [again._gamma]
