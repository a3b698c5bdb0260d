import inspect
import warnings

import pytest

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
