"""Keys of indices and layers: what they become, what is refused, and what is given for other places."""

import sys

import numpy as np
import pytest
import spyndex
import yaml
from synthetic import recipe_for, write_raster

from segkit.errors import RecipeError, UsageError
from segkit.io.formula import Formula
from segkit.io.mosaic import Mosaic
from segkit.recipe.derived import describe_layers
from segkit.recipe.imagery import Imagery, change_imagery
from segkit.recipe.schema import Recipe
from segkit.runtime.extras import describe_missing_package


def index(given):
    """The index of a recipe as the reader of scenes gets it."""
    (made,) = Imagery.model_validate({"indices": [given]}).indices
    return made.to_formula()


def test_all_indices_of_spyndex_are_computed_as_spyndex_does():
    """Oracle: spyndex, which evaluates its formulas as Python. Indices of kernels are refused."""
    random, refused = np.random.default_rng(0), []
    for name in spyndex.indices:
        needed = {"PAR": 2.0} | {one: 800.0 + len(one) for one in spyndex.constants if one.startswith("lambda")}
        formula_names = Formula(spyndex.indices[name].formula).names
        constants = {one: value for one, value in needed.items() if one in formula_names}
        try:
            made = index({"index": name, "constants": constants})
        except ValueError as error:
            assert "which segkit does not compute" in str(error)  # noqa: PT017
            refused.append(name)
            continue
        bands = {variable: random.uniform(0.02, 0.6, 50).astype(np.float32) for variable, _ in made.bands}
        wide = {variable: values.astype(np.float64) for variable, values in bands.items()}
        try:
            with np.errstate(all="ignore"):
                truth = spyndex.computeIndex(name, {**wide, **dict(made.constants)})
        except ZeroDivisionError:  # by a constant
            truth = np.full(50, np.nan)
        found = Formula(made.formula).evaluate({**bands, **dict(made.constants)})
        np.testing.assert_allclose(found, np.where(np.isfinite(truth), truth, np.nan), rtol=1e-5, err_msg=name)
    assert {"kNDVI", "kRVI"} <= {*refused}
    assert len(refused) < 10


@pytest.mark.parametrize(
    ("given", "name", "bands", "constants"),
    [
        ("NDVI", "NDVI", {"N": "nir", "R": "red"}, {}),
        ("NDREI", "NDREI", {"N": "nir", "RE1": "rededge071"}, {}),
        ({"index": "SAVI"}, "SAVI", {"N": "nir", "R": "red"}, {"L": 1}),
        ({"index": "SAVI", "constants": {"L": 0.5}}, "SAVI", {"N": "nir", "R": "red"}, {"L": 0.5}),
        ({"index": "NDVI", "name": "june", "bands": {"N": 9}}, "june", {"N": 9, "R": "red"}, {}),
        ("nir / red", "(nir / red)", {"nir": "nir", "red": "red"}, {}),
        ("(B8A - B04) / (B8A + B04)", "(B8A - B04) / (B8A + B04)", {"B8A": "B8A", "B04": "B04"}, {}),
        ({"formula": "a - k*b", "bands": {"a": 1}, "constants": {"k": 2}}, "(a - k*b)", {"a": 1, "b": "b"}, {"k": 2}),
        ("DpRVIVV", "DpRVIVV", {"VH": "VH", "VV": "VV"}, {}),
    ],
)  # fmt: skip
def test_forms_of_an_index(given, name, bands, constants):
    made = index(given)
    assert (made.name, dict(made.bands), dict(made.constants)) == (name, bands, constants)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"indices": ["NDVi"]}, r"data.indices.0: spyndex knows no index 'NDVi'; did you mean NDVI"),
        ({"indices": ["__import__('os')"]}, r"data.indices.0: the formula .* cannot be read"),
        ({"indices": [{"index": "NDVI", "formula": "a / b"}]}, "data.indices.0: give either index or formula"),
        ({"indices": [{"name": "x"}]}, "data.indices.0: give either index or formula"),
        ({"indices": [{"index": "NDVI", "constants": {"L": 1}}]}, r"L is given, but the formula is \(N-R\)/\(N\+R\)"),
        ({"indices": [{"index": "NIRvP"}]}, r"NIRvP needs PAR \(Photosynthetically.*add it to constants"),
        ({"indices": ["kNDVI"]}, "kNN is a kernel of bands, which segkit does not compute"),
        ({"indices": ["NDVI", "NDVI"]}, "data: indices and layers have 'NDVI' twice"),
        ({"indices": ["NDVI"], "layers": {"NDVI": "a.tif"}}, "data: indices and layers have 'NDVI' twice"),
        ({"layers": {"a:b": "a.tif"}}, "data: layers has the name 'a:b'"),
        ({"layers": {"dem": {"pth": "a.tif"}}}, "data.layers.dem.pth: unknown key; did you mean path?"),
        ({"layers": {"dem": {"path": "a.tif", "resampling": "lanczos"}}}, "data.layers.dem.resampling: found"),
        ({"layers": {"dem": 3}}, r"data.layers.dem: found 3; must be a path, or keys"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, keys, words):
    with pytest.raises(RecipeError, match=words):
        recipe_for(tmp_path, "binary", data=keys)


def test_a_stored_recipe_holds_formulas_and_needs_no_spyndex(tmp_path, monkeypatch):
    made = recipe_for(tmp_path, "binary", data={"indices": ["NDVI", "a / b"], "layers": {"dem": "/x.tif"}})
    monkeypatch.setitem(sys.modules, "spyndex", None)
    assert Recipe.from_dict(made.to_dict()) == made
    assert made.data.indices[0].formula == "(N-R)/(N+R)"
    with pytest.raises(ModuleNotFoundError, match="spyndex") as error:
        recipe_for(tmp_path, "binary", data={"indices": ["NDVI"]})
    assert 'pip install "landcover-segkit[indices]"' in describe_missing_package(error.value)


def test_paths_of_layers_are_relative_to_the_recipe(tmp_path):
    recipe = recipe_for(tmp_path, "binary").to_dict()
    recipe["data"]["layers"] = {"a": "dem.tif", "b": {"path": "b.tif"}, "c": {"path": {"mosaic": ["c/*.tif"]}}}
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "r.yaml").write_text(yaml.safe_dump(recipe))
    loaded = Recipe.load(tmp_path / "recipes" / "r.yaml", ["data.layers.b.path=/other.tif"])
    a, b, c = loaded.data.covering_layers
    assert (a.path, str(b.path)) == (tmp_path / "recipes" / "dem.tif", "/other.tif")
    assert c.path == Mosaic(tmp_path / "recipes" / "c" / "*.tif")


def test_another_place_has_another_file(tmp_path):
    trained = Imagery.model_validate(
        {"layers": {"dem": {"path": "/a.tif", "nodata": 0}, "soil": {"path": {"mosaic": "s/*.tif", "overlap": "last"}}}}
    )
    changed = change_imagery(trained, {"layers": {"dem": "/b.tif"}})
    dem, soil = changed.covering_layers
    assert (str(dem.path), dem.nodata, soil) == ("/b.tif", (0,), trained.covering_layers[1])
    write_raster(tmp_path / "tiles" / "a.tif", np.ones((3, 3)))
    for path in (tmp_path / "tiles", tmp_path / "tiles" / "*.tif"):
        dem, soil = change_imagery(trained, {"layers": {"dem": str(path), "soil": str(path)}}).covering_layers
        assert (dem.path, soil.path) == (Mosaic(path), Mosaic(path, "last"))
    with pytest.raises(UsageError, match="trained without a layer 'DEM'; its layers are dem, soil"):
        change_imagery(trained, {"layers": {"DEM": "/b.tif"}})
    assert describe_layers(changed.layers) == describe_layers(trained.layers)
