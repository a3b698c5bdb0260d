import numpy as np
import pytest
from pydantic import BaseModel

from segkit.errors import TaskError
from segkit.task import IGNORE, CoOccurrence, LandCoverClass, Task

NAMES = ("water", "forest", "flooded forest", "building")


def task(never=(), implies=None):
    classes = [LandCoverClass(name, value) for value, name in enumerate(NAMES, 1)]
    return Task("multilabel", classes, never=never, implies=implies or {})


FULL = task([["water", "building"], ["forest", "building"]], {"flooded forest": ["water", "forest"]})


@pytest.mark.parametrize(
    ("never", "implies", "message"),
    [
        ([["water", "bulding"]], {}, "task.never names 'bulding', which is not a class of the task; use water"),
        ([["water"]], {}, "task.never lists water alone"),
        ([["water", "water"]], {}, "names 'water' with itself"),
        ([], {"lake": ["water"]}, "task.implies.lake names 'lake'"),
        ([], {"water": ["water"]}, "names 'water' with itself"),
        ([], {"water": ["forest"], "forest": ["water"]}, r"'water' implies itself \(water, forest, water\)"),
        (
            [],
            {"flooded forest": ["water"], "water": ["forest"], "forest": ["water"]},
            r"'water' implies itself \(water, forest, water\)",
        ),
        ([["water", "forest"]], {"flooded forest": ["forest", "water"]}, "a pixel of 'flooded forest' is water and fo"),
        (
            [["water", "building"]],
            {"building": ["forest"], "forest": ["water"]},
            "a pixel of 'building' is water and building, which task.never excludes",
        ),
    ],
)
def test_rules_that_contradict_are_refused(never, implies, message):
    with pytest.raises(TaskError, match=message):
        task(never, implies)


def test_rules_survive_a_recipe():
    class Experiment(BaseModel):
        task: Task

    dumped = Experiment(task=FULL).model_dump(mode="json")
    assert Experiment.model_validate(dumped).task == FULL
    assert hash(FULL) == hash(Experiment.model_validate(dumped).task)
    assert [one.text for one in FULL.relations] == [
        "forest and building never share a pixel",
        "water and building never share a pixel",
        "flooded forest implies water",
        "flooded forest implies forest",
    ]


def test_counts_are_those_of_a_loop_over_pixels():
    targets = np.random.default_rng(0).integers(-1, 2, (4, 13, 11)).astype(np.int16)
    found, rest = CoOccurrence(FULL), CoOccurrence(FULL)
    found.add(targets[:, :5])
    rest.add(targets[:, 5:])
    found.merge(rest)
    both, known, wrong, pixels, any_wrong = np.zeros((4, 4)), np.zeros((4, 4)), [0] * 4, 0, 0
    for pixel in targets.reshape(4, -1).T.tolist():
        has = dict(zip(NAMES, pixel, strict=True))
        for a in range(4):
            for b in range(4):
                both[a, b] += pixel[a] == pixel[b] == 1
                known[a, b] += pixel[a] == 1 and pixel[b] != IGNORE
        broken = [
            has["forest"] == has["building"] == 1,
            has["water"] == has["building"] == 1,
            has["flooded forest"] == 1 and has["water"] == 0,
            has["flooded forest"] == 1 and has["forest"] == 0,
        ]
        wrong = [one + other for one, other in zip(wrong, broken, strict=True)]
        pixels, any_wrong = pixels + any(value != IGNORE for value in pixel), any_wrong + any(broken)
    np.testing.assert_array_equal(found.both, both)
    np.testing.assert_array_equal(found.known, known)
    assert found.contradictions.tolist() == wrong
    assert found.summary()["share"] == any_wrong / pixels
    assert found.table()["water"]["building"] == both[0, 3] / known[0, 3]
    assert CoOccurrence(FULL).table()["water"]["building"] is None
