"""Formulas of bands: what they compute, and that nothing else can be run."""

import numpy as np
import pytest

from segkit.io.formula import Formula

RANDOM = np.random.default_rng(0)
N, R, B = RANDOM.uniform(0.02, 0.6, (3, 40, 50)).astype(np.float32)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(N - R)/(N + R)", lambda n, r, b: (n - r) / (n + r)),
        ("2.5 * (N - R) / (N + 6 * R - 7.5 * B + 1)", lambda n, r, b: 2.5 * (n - r) / (n + 6 * r - 7.5 * b + 1)),
        ("-N ** 2 + +B", lambda n, r, b: b - n * n),
        (
            "0.5 * (2.0 * N + 1 - (((2 * N + 1) ** 2) - 8 * (N - R)) ** 0.5)",
            lambda n, r, b: 0.5 * (2 * n + 1 - np.sqrt((2 * n + 1) ** 2 - 8 * (n - r))),
        ),
    ],
)
def test_formulas_are_arithmetic(text, expected):
    found = Formula(text).evaluate({"N": N, "R": R, "B": B})
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected(*(band.astype(np.float64) for band in (N, R, B))), rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "a", "b"),
    [
        ("a / b", 0, 0), ("a / b", 1, 0), ("(a - b) / (a + b)", 3, -3), ("(a - b) ** 0.5", 1, 2),
        ("a ** 9 ** b", 10, 5), ("a ** 0 * b", np.nan, 1), ("a + b", np.inf, 1),
    ],
)  # fmt: skip
def test_what_is_not_defined_is_nan_and_warns_of_nothing(text, a, b):
    values = {"a": np.array([a, 4.0], dtype=np.float32), "b": np.array([b, 2.0], dtype=np.float32)}
    found = Formula(text).evaluate(values)
    assert np.isnan(found[0])
    assert not np.isinf(found).any()


@pytest.mark.parametrize(
    "text",
    [
        "", "nir +", "__import__('os').remove('x')", "a.b", "a[0]", "f(a)", "a if b else c", "a and b", "not a",
        "a < b", "a // b", "a % b", "'x' * a", "True * a", "1j * a", "(a, b)", "[a for a in b]", "lambda: a", "a := 1",
        "a; b", "1 + 2", f"a * {'9' * 400}", "a + " * 600 + "a", "(" * 300 + "a" + ")" * 300, "a" * 3000, "a\0",
    ],
)  # fmt: skip
def test_nothing_else_is_read(text):
    with pytest.raises(ValueError, match="the formula"):
        Formula(text)


@pytest.mark.parametrize(
    ("text", "constants", "expected"),
    [
        ("(N - R)/(N + R)", {}, True),
        ("N / R - 1", {}, True),
        ("N - 1.2 * R", {}, True),
        ("(N * R) ** 0.5", {}, True),
        ("(1.0 + L) * (N - R) / (N + R + L)", {"L": 0.5}, False),
        ("2.5 * (N - R) / (N + 6 * R - 7.5 * B + 1)", {}, False),
        ("((N - R)/(N + R)) * N", {}, True),
    ],
)
def test_units_matter_to_some_formulas_only(text, constants, expected):
    assert Formula(text).is_homogeneous(constants) is expected
