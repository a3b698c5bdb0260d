"""The benchmarks use names that exist, also in code that they hand to other processes as text."""

import importlib
import re

import pytest
from places import ROOT

TOOLS = sorted((ROOT / "tools").glob("*.py"))


@pytest.mark.parametrize("tool", TOOLS, ids=lambda path: path.stem)
def test_imported_names_exist(tool):
    text = tool.read_text(encoding="utf-8")
    imports = re.findall(r"from (segkit[\w.]*) import (?:\(([^)]*)\)|([^\n;]+))", text)
    for module, block, line in imports:
        for name in re.findall(r"(\w+)(?: as \w+)?\s*(?:,|$)", re.sub(r"#.*", "", block or line)):
            found = importlib.import_module(module)
            assert hasattr(found, name) or importlib.import_module(f"{module}.{name}"), f"{module}.{name}"
