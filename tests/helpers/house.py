"""The modules of segkit, by walking its folders."""

from pathlib import Path

import segkit

HOUSE = Path(segkit.__file__).parent


def modules():
    """{dotted name below segkit: file}; a package is named like its folder."""
    found = {}
    for file in sorted(HOUSE.rglob("*.py")):
        *folders, name = file.relative_to(HOUSE).with_suffix("").parts
        found[".".join(folders if folders and name == "__init__" else [*folders, name])] = file
    return found
