import inspect
import operator
import warnings

import pytest

import segkit
from segkit.runtime.deprecation import renamed_attribute, renamed_keywords


@renamed_keywords(error="target_se", of="class_name")
def design(path, *, target_se=None, class_name=None):
    """Draw a sample."""
    return path, target_se, class_name


def test_an_old_name_is_passed_on_with_a_warning():
    with pytest.warns(DeprecationWarning, match="^argument error= is now called target_se=$") as caught:
        assert design("a.tif", error=0.01, class_name="forest") == ("a.tif", 0.01, "forest")
    assert len(caught) == 1
    assert caught[0].filename == __file__  # the caller's line, not the decorator's


def test_new_names_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert design("a.tif", target_se=0.01, class_name="forest") == ("a.tif", 0.01, "forest")


def test_both_names_and_unknown_names_are_errors():
    with pytest.raises(TypeError, match="both error= and target_se="):
        design("a.tif", error=0.01, target_se=0.02)
    with pytest.raises(TypeError, match="unexpected keyword"):
        design("a.tif", erorr=0.01)


def test_signature_and_docstring_are_those_of_the_function():
    assert list(inspect.signature(design).parameters) == ["path", "target_se", "class_name"]
    assert design.__doc__ == "Draw a sample."


def test_a_renamed_attribute_gives_its_value_with_a_warning():
    class Estimate:
        unlabelled = 3
        unfilled = renamed_attribute("unfilled", "unlabelled")

    with pytest.warns(DeprecationWarning, match="^attribute unfilled is now called unlabelled$"):
        assert Estimate().unfilled == 3


NAMES = {"names": "class_names"}
SCORES = NAMES | {"boundary": "boundary_width", "objects": "min_object_area"}


@pytest.mark.parametrize(
    ("name", "renamed", "arguments"),
    [
        ("evaluate", SCORES, ("map.tif", None, "labels.tif")),
        ("report", SCORES, ("map.tif", "report.html")),
        ("vectorize", NAMES, ("map.tif", "out.gpkg")),
        ("polygons", NAMES, ("map.tif",)),
        ("change", NAMES, ("map.tif", "new.tif", "out.tif")),
        ("assess.design", NAMES, ("map.tif", "out.gpkg")),
        ("assess.estimate_sample", NAMES, ("map.tif", "points.gpkg")),
        ("predict", {"crew": "executor", "batch": "batch_size"}, ("map.tif", "scene.tif", "out.tif")),
    ],
)
def test_public_functions_take_old_names(tmp_path, monkeypatch, name, renamed, arguments):
    monkeypatch.chdir(tmp_path)
    function = operator.attrgetter(name)(segkit)
    parameters = inspect.signature(function).parameters
    for old, new in renamed.items():
        assert new in parameters
        assert old not in parameters
        value = parameters[new].default
        with (
            pytest.warns(DeprecationWarning, match=f"^argument {old}= is now called {new}=$"),
            pytest.raises((segkit.SegkitError, TypeError), match=r"no such|points|map\.tif"),
        ):
            function(*arguments, **{old: value})
