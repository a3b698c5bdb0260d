from segkit.task.colors import default_colors


def test_names_have_the_colours_that_maps_give_them():
    names = ["Open water", "forest", "snow_ice", "UrbanArea", "crops", "burned forest", "deforestation"]
    assert default_colors(names) == ["#2b83ba", "#1b7837", "#e0f3f8", "#c0392b", "#f6c244", "#4d1a00", "#d7301f"]


def test_no_two_classes_have_one_colour():
    names = ["forest", "mixed forest", "coniferous forest", "wood", "trees", "a", "b", "c", "not water", "water"]
    colors = default_colors(names, ["#1b7837", *[None] * 9])
    assert len({*colors}) == len(names)
    assert colors[0] == "#1b7837"
    assert (colors[8] == "#2b83ba", colors[9]) == (False, "#2b83ba")  # what is not water is not blue
