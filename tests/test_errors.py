import inspect
import pickle
import re

import pytest
import tblib.pickling_support

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
    parents = {one: [base for base in one.__bases__ if issubclass(base, SegkitError)] for one in CLASSES}
    assert drawn() == root | {one.__name__: base.__name__ for one, bases in parents.items() for base in bases}


@pytest.mark.parametrize("error", CLASSES, ids=lambda one: one.__name__)
def test_drawn_builtins_and_exit_codes_hold(error):
    line = next(line for line in errors.__doc__.splitlines() if f"{error.__name__} " in line)
    for builtin in re.findall(r"\b(?:ValueError|OSError|FileNotFoundError|FileExistsError)\b", line):
        assert issubclass(error, eval(builtin))
    for code in re.findall(r"exit code (\d)", line):
        assert error.exit_code == int(code)
    assert error.exit_code == (2 if issubclass(error, errors.UsageError) else 1)
    assert str(error("one line")) == "one line"  # an OSError of several arguments would print otherwise


@pytest.mark.parametrize("error", CLASSES, ids=lambda one: one.__name__)
def test_errors_come_back_from_other_processes(error):
    """As Python sends them, and as Dask does, which makes them by `__new__` alone."""
    messages = error("one line")
    make, values, *_ = tblib.pickling_support.pickle_exception(messages)
    for copy in (pickle.loads(pickle.dumps(messages)), make(*values)):
        assert type(copy) is error
        assert str(copy) == "one line"
        assert vars(copy) == vars(messages)
