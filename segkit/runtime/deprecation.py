"""Renamed arguments and attributes: the old name works for one more release."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")


def renamed_keywords(**new_names: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Let a function accept keyword arguments under their old names, with a DeprecationWarning.

    Parameters
    ----------
    **new_names
        ``old="new"`` for each argument.

    Raises
    ------
    TypeError
        By the function: an argument is given under both names.

    Examples
    --------
    >>> @renamed_keywords(error="target_se")
    ... def design(*, target_se): ...
    """

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        @functools.wraps(function)
        def with_old_names(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            for old, new in new_names.items():
                if old not in kwargs:
                    continue
                if new in kwargs:
                    raise TypeError(f"{function.__name__}() got both {old}= and {new}=; {old}= is the old name")
                warnings.warn(f"argument {old}= is now called {new}=", DeprecationWarning, stacklevel=2)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return with_old_names

    return decorate


def renamed_attribute(old: str, new: str) -> property:
    """Return a property that gives the value of a renamed attribute, with a DeprecationWarning."""

    def value(self: object) -> object:
        warnings.warn(f"attribute {old} is now called {new}", DeprecationWarning, stacklevel=2)
        return getattr(self, new)

    return property(value)
