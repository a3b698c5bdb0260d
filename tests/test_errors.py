import inspect
import re

import pytest

from segkit import errors
from segkit.errors import SegkitError

CLASSES = [one for _, one in inspect.getmembers(errors, inspect.isclass) if issubclass(one, SegkitError)]


def drawn():
    """{name: parent's name} as the docstring draws the tree; the last column of a line says what it is."""
    parents, path = {}, []
    for line in errors.__doc__.splitlines():
        if found := re.match(r"    ((?:\|   |    )*(?:\+-- )?)(\w+Error) ", line):
            depth = len(found[1]) // 4
            path[depth:] = [found[2]]
            parents[found[2]] = path[depth - 1] if depth else None
    return parents


def test_the_tree_in_the_docstring_is_that_of_the_classes():
    root = {"SegkitError": None}
    assert drawn() == root | {one.__name__: one.__bases__[0].__name__ for one in CLASSES if one is not SegkitError}


@pytest.mark.parametrize("error", CLASSES, ids=lambda one: one.__name__)
def test_drawn_builtins_and_exit_codes_hold(error):
    line = next(line for line in errors.__doc__.splitlines() if f"{error.__name__} " in line)
    for builtin in re.findall(r"\b(?:ValueError|OSError|FileNotFoundError|FileExistsError)\b", line):
        assert issubclass(error, eval(builtin))
    for code in re.findall(r"exit code (\d)", line):
        assert error.exit_code == int(code)
    assert error.exit_code == (2 if issubclass(error, errors.UsageError) else 1)
    assert str(error("one line")) == "one line"  # an OSError of several arguments would print otherwise
