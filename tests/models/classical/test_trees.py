import numpy as np
import pytest
import sklearn
import torch
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier

from segkit.errors import UsageError
from segkit.models.classical import trees
from segkit.models.classical.trees import Boosting, Forest
from segkit.training import classical
from segkit.training.classical import fit_arrays
from segkit.training.pixels import PixelSample

PLACES = np.array([0, 2, 3])  # categories with pixels, of 5


def pixels(count, classes=3, seed=0):
    random = np.random.default_rng(seed)
    categories = random.integers(0, classes, count)
    features = random.normal(0, 1, (count, 6)) + categories[:, None] * [1, -1, 0.5, 0, 0, 0]
    features[:, 5] = random.integers(0, 3, count)  # values that occur often
    return features.astype(np.float32), PLACES[categories].astype(np.int16)


@pytest.fixture(scope="module", params=["forest", "boosting", "boosting of two", "a forest of one leaf"])
def fitted(request):
    """A learner, and scikit-learn's with the same pixels."""
    sample = PixelSample(*pixels(400, 2 if request.param.endswith("two") else 3), None, 400)
    if "forest" in request.param:
        options = {"n_estimators": 20} | ({"max_depth": 1, "max_leaf_nodes": 2} if "leaf" in request.param else {})
        if "leaf" in request.param:
            options |= {"min_impurity_decrease": 1.0}
        learner, oracle = Forest(6, 5), RandomForestClassifier(random_state=0, n_jobs=1, **options)
    else:
        learner, oracle = Boosting(6, 5), HistGradientBoostingClassifier(max_iter=8, random_state=0)
    learner.set_arrays(**fit_arrays(oracle, sample, 5))
    return learner, oracle


def test_probabilities_are_those_of_sklearn(fitted):
    learner, oracle = fitted
    tested, _ = pixels(1003, seed=1)
    tested[:400] = pixels(400)[0]  # those of the fit lie at thresholds more often
    found = learner(torch.from_numpy(tested)).softmax(dim=1).numpy()
    np.testing.assert_allclose(found[:, oracle.classes_], oracle.predict_proba(tested), atol=1e-6)
    others = np.setdiff1d(range(5), oracle.classes_)
    assert (found[:, others] == 0).all()


@pytest.mark.parametrize("missing", ["_predictors", "_baseline_prediction"])
def test_boosting_that_scikit_learn_stores_otherwise_is_refused(missing):
    """The attributes are private, so a new version may change them."""

    class Changed(HistGradientBoostingClassifier):
        def fit(self, *given, **more):
            super().fit(*given, **more)
            delattr(self, missing)

    oracle = Changed(max_iter=2, random_state=0)
    with pytest.raises(UsageError, match=rf"cannot read boosting as scikit-learn {sklearn.__version__} stores it"):
        fit_arrays(oracle, PixelSample(*pixels(200), None, 200), 5)


def test_boosting_that_is_read_wrongly_is_refused(monkeypatch):
    original = classical._read_boosting

    def read(*given):
        arrays = original(*given)
        return arrays | {"base": arrays["base"] + 0.1}

    monkeypatch.setattr(classical, "_read_boosting", read)
    oracle = HistGradientBoostingClassifier(max_iter=2, random_state=0)
    with pytest.raises(UsageError, match=r"its trees give other scores.; install an earlier scikit-learn"):
        fit_arrays(oracle, PixelSample(*pixels(200), None, 200), 5)


def test_thresholds_are_compared_in_float32_as_sklearn_compares_in_float64():
    """Pixels one step of float32 on each side of a threshold."""
    tested, categories = pixels(300)
    oracle = RandomForestClassifier(30, random_state=0, n_jobs=1).fit(tested, categories)
    learner = Forest(6, 5)
    learner.set_arrays(**fit_arrays(oracle, PixelSample(tested, categories, None, 300), 5))
    near = []
    for tree in oracle.estimators_:
        for feature, threshold in zip(tree.tree_.feature, tree.tree_.threshold, strict=True):
            if feature >= 0:
                for value in (np.float32(threshold), np.nextafter(np.float32(threshold), np.float32(9))):
                    near.append(tested[0].copy())
                    near[-1][feature] = value
    near = np.array(near)
    found = learner(torch.from_numpy(near)).softmax(dim=1).numpy()
    np.testing.assert_allclose(found[:, oracle.classes_], oracle.predict_proba(near), atol=1e-6)


def test_operations_of_torch_give_the_same_sums(fitted, monkeypatch):
    """As on a GPU, in several parts."""
    learner, _ = fitted
    tested = torch.from_numpy(pixels(500, seed=2)[0])
    monkeypatch.setattr(trees, "_MAX_PATHS", 2000)
    torch.testing.assert_close(learner._walk(tested) + learner.base.double(), learner.sum_values(tested))


def test_sums_do_not_depend_on_threads(fitted, monkeypatch):
    learner, _ = fitted
    tested = torch.from_numpy(pixels(500, seed=2)[0])
    alone = learner.sum_values(tested)
    monkeypatch.setattr(trees, "_PART", 64)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(learner.sum_values(tested), alone)


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("below", lambda array: array.fill_(10**6), "nodes that do not exist"),
        ("below", lambda array: array.zero_(), "nodes that do not exist"),  # an endless walk
        ("below", lambda array: array.fill_(-(10**6)), "nodes that do not exist"),
        ("roots", lambda array: array.fill_(10**6), "nodes that do not exist"),
        ("feature", lambda array: array.fill_(6), "features outside 0 to 5"),
        ("feature", lambda array: array.fill_(-1), "features outside 0 to 5"),
        ("threshold", lambda array: array[:-1], "threshold has the shape"),
        ("values", lambda array: array[:, :-1], "values has the shape"),
        ("values", lambda array: array * 2, "not probabilities"),
        ("roots", lambda array: array[:0], "no trees"),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(name, change, problem):
    learner, other = Forest(6, 5), Forest(6, 5)
    sample = PixelSample(*pixels(200), None, 200)
    learner.set_arrays(**fit_arrays(RandomForestClassifier(5, random_state=0), sample, 5))
    other.load_state_dict(learner.state_dict())
    state = learner.state_dict()
    changed = change(state[name].clone())
    state[name] = changed
    with pytest.raises(RuntimeError, match=problem):
        other.load_state_dict(state)
