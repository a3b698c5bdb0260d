import numpy as np

from segkit.auditing.confident_learning import (
    class_thresholds,
    confident_joint,
    find_confident,
    propose_categories,
)


def test_thresholds_and_joint_are_those_of_the_definition():
    """Northcutt, Jiang and Chuang 2021, equations 1 to 3, by a loop over examples that are repeated as their weight."""
    random = np.random.default_rng(0)
    labels, weights = random.integers(0, 3, 60), random.integers(1, 5, 60)
    probabilities = random.dirichlet([1, 1, 1, 1], 60)
    thresholds = class_thresholds(labels, probabilities, weights)
    repeated = [index for index, weight in enumerate(weights) for _ in range(weight)]
    expected = [np.mean([probabilities[i, j] for i in repeated if labels[i] == j]) for j in range(3)]
    np.testing.assert_allclose(thresholds, [*expected, np.inf])  # nothing is labelled as the last
    joint = np.zeros((4, 4))
    for i in repeated:
        reached = [j for j in range(4) if probabilities[i, j] >= thresholds[j]]
        if reached:
            joint[labels[i], max(reached, key=lambda j: probabilities[i, j])] += 1
    np.testing.assert_array_equal(confident_joint(labels, probabilities, thresholds, weights), joint)


def test_a_proposal_is_confident_off_the_diagonal_of_the_joint_only():
    thresholds = np.array([0.9, 0.5, 0.4])
    probabilities = np.array([[0.95, 0.05, 0], [0.3, 0.6, 0.1], [0.8, 0.15, 0.05], [0.1, 0.45, 0.45]])
    labels = np.array([0, 0, 1, 1])
    assert find_confident(probabilities, thresholds).tolist() == [0, 1, -1, 2]
    found = propose_categories(labels, probabilities, thresholds)
    assert found.confident.tolist() == [False, True, False, True]
    assert found.category.tolist()[1:] == [1, 0, 2]
    np.testing.assert_allclose(found.margin[1:], [0.1 + 0.6, -0.1 + 0.35, 0.05 + 0.05])
    assert found.margin[0] < 0
