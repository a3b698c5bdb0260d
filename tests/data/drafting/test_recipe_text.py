import pytest

from segkit.data.drafting.recipe_text import comment, write_section, write_value
from segkit.recipe.yaml import parse_yaml

ODD = ["a", "no", "null", "1", "1e3", "#ff0000", "a: b", "x ", " x", "Græs, 1. år", "C:\\x", "", "~", "true", "-1", '"']
ODD += ["wald \x96 1", "\x7f", "\x85", "\ufeffx", "\u2028"]  # as from a file that was read in another encoding


@pytest.mark.parametrize("value", [*ODD, 1, 1.5, None, False, ODD, {each: each for each in ODD}])
def test_yaml_reads_what_was_written(value):
    assert parse_yaml(f"key: {write_value(value)}", "text") == {"key": value}


def test_sections_keep_their_values_whatever_the_width():
    values = {
        "bands": [*range(1, 200)], "paths": [f"some/folder/of/images/{number}.tif" for number in range(9)],
        "table": {f"class number {number}": None for number in range(20)}, "short": 3,
    }  # fmt: skip
    lines = write_section("data", values, {"data": "word " * 60, "data.short": "why"}, "  ")
    assert parse_yaml("\n".join(lines), "text") == {"data": values}
    assert max(map(len, lines)) <= 120
    assert sum("# why" in line for line in lines) == 1


def test_a_comment_has_only_characters_of_yaml():
    assert parse_yaml("\n".join(["key: 1", *comment("wald \x96 \ufeffx")]), "text") == {"key": 1}


def test_a_comment_keeps_all_words():
    text = " ".join(f"word{number}" for number in range(100))
    lines = comment(text, "    ")
    assert all(line.startswith("    # ") for line in lines)
    assert " ".join(line.removeprefix("    # ") for line in lines) == text
