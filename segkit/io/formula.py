"""Arithmetic of bands, written as text: "(nir - red) / (nir + red)". Other code is refused, so texts need no trust."""

from __future__ import annotations

import ast
import functools
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}
_MAX_CHARACTERS, _MAX_PARTS = 2000, 500
# For `is_homogeneous`: values in the range of reflectances, and a factor of which no power is rounded.
_SAMPLES, _FACTOR = 64, 0.5


class Formula:
    """Numbers and names, joined by +, -, *, /, ** and parentheses.

    Raises
    ------
    ValueError
        It is something else, or has no name.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._tree = _parse(text)
        self.names: tuple[str, ...] = tuple(
            dict.fromkeys(node.id for node in ast.walk(self._tree) if isinstance(node, ast.Name))
        )
        if not self.names:
            raise ValueError(f"the formula {text!r} names no band; write it like (nir - red) / (nir + red)")

    def evaluate(self, values: Mapping[str, Any]) -> NDArray[np.float32]:
        """Compute the formula.

        Parameters
        ----------
        values
            {name: array or number} of all names; arrays have one shape.

        Returns
        -------
        float32, computed in float64; NaN where a value is NaN or the result is not a finite number of float32 (division
        by zero, root of a negative number).
        """
        wide = {name: np.asarray(values[name], dtype=np.float64) for name in self.names}
        with np.errstate(all="ignore"):
            result = np.asarray(_evaluate(self._tree, wide), dtype=np.float32)
        # x ** 0 is 1, even if x is NaN.
        known = np.isfinite(result)
        for each in wide.values():
            known = known & ~np.isnan(each)
        return np.where(known, result, np.float32(np.nan))

    def is_homogeneous(self, constants: Mapping[str, float]) -> bool:
        """Return whether other units of all bands only scale the result, as with a ratio or a difference of bands.

        Parameters
        ----------
        constants
            Values of the names that are no bands.
        """
        random = np.random.default_rng(0)
        bands = {name: random.uniform(0.02, 0.6, _SAMPLES) for name in self.names if name not in constants}
        before = self.evaluate({**bands, **constants})
        after = self.evaluate({**{name: values * _FACTOR for name, values in bands.items()}, **constants})
        known = np.isfinite(before) & np.isfinite(after) & (before != 0)
        ratio = after[known] / before[known]
        return bool(known.any() and np.allclose(ratio, ratio[0], rtol=1e-3))


@functools.lru_cache(maxsize=256)
def parse_formula(text: str) -> Formula:
    """Return the formula of a text; the same one each time.

    Raises
    ------
    ValueError
        See `Formula`.
    """
    return Formula(text)


def _parse(text: str) -> ast.expr:
    rule = "a formula has numbers, names of bands, + - * / ** and parentheses"
    try:
        if len(text) > _MAX_CHARACTERS:
            raise ValueError(f"more than {_MAX_CHARACTERS} characters")
        tree = ast.parse(text.strip(), mode="eval").body
        nodes = list(_operands(tree))
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise ValueError(f"the formula {text[:80]!r} cannot be read ({reason}); {rule}") from error
    if len(nodes) > _MAX_PARTS:
        raise ValueError(f"the formula {text[:80]!r} has {len(nodes)} parts, more than {_MAX_PARTS}")
    return tree


def _operands(node: ast.expr) -> Iterator[ast.expr]:
    """Yield a node and all nodes below it.

    Raises
    ------
    ValueError
        There is something else than arithmetic.
    """
    yield node
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        yield from _operands(node.left)
        yield from _operands(node.right)
    elif isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        yield from _operands(node.operand)
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        float(node.value)  # type: ignore[arg-type]  # an integer may be too large
    elif not isinstance(node, ast.Name):
        raise ValueError(f"found {ast.unparse(node)}")


def _evaluate(node: ast.expr, values: Mapping[str, Values]) -> Any:
    if isinstance(node, ast.BinOp):
        return _BINARY[type(node.op)](_evaluate(node.left, values), _evaluate(node.right, values))
    if isinstance(node, ast.UnaryOp):
        return _UNARY[type(node.op)](_evaluate(node.operand, values))
    if isinstance(node, ast.Name):
        return values[node.id]
    assert isinstance(node, ast.Constant)
    return np.float64(node.value)  # type: ignore[arg-type]
