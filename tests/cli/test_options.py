"""Options that are parsed by segkit itself."""

import pytest
import typer

from segkit.cli.options import parse_layers


def test_layers_are_names_and_paths():
    assert parse_layers(None) == {}
    assert parse_layers(["elevation=dem.tif", "soil=a=b/*.tif"]) == {"elevation": "dem.tif", "soil": "a=b/*.tif"}


@pytest.mark.parametrize("given", [["dem.tif"], ["=dem.tif"], ["elevation="], ["a=b", "a=c"]])
def test_other_forms_are_refused(given):
    with pytest.raises(typer.BadParameter, match="write NAME=PATH"):
        parse_layers(given)
