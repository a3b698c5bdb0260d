"""Vector files are read, and nothing but them: each attack names another file or a server that counts requests."""

import json
import re
import shutil
import sqlite3
from pathlib import Path

import geopandas
import numpy as np
import pyogrio
import pyproj
import pytest
import shapely
from server import serving

import segkit
from segkit.assess.points import read_points
from segkit.data.labels.open import open_labels
from segkit.data.split import spatial_split
from segkit.errors import DataError, MissingFileError
from segkit.io.region import read_aoi
from segkit.io.vector import DRIVERS, VECTOR_SUFFIXES, is_vector, layer_names, read_layer
from segkit.recipe.label_source import LabelSource
from segkit.recipe.splits import SpatialSplit
from segkit.task import LandCoverClass, Task

SECRET = "hunter2"
SQUARE = shapely.box(0, 0, 1, 1)
FRAME = geopandas.GeoDataFrame(
    {"kind": ["forêt", None, "lake"], "code": [1, 2, 3], "share": [0.5, np.nan, 2.0]},
    geometry=[shapely.box(x, 40, x + 1, 41) for x in range(3)],
    crs=4326,
)


def write(path, frame=FRAME, layer=None, append=False):
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        driver = {".kml": "LIBKML", ".json": "GeoJSON"}.get(path.suffix)
        pyogrio.write_dataframe(frame, path, driver=driver, layer=layer, append=append)
    return path


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "elsewhere" / "secret.csv"
    path.parent.mkdir()
    path.write_text(f'name,WKT\n{SECRET},"POLYGON ((0 0, 0 1, 1 1, 0 0))"\n')
    return path


@pytest.fixture
def server(tmp_path):
    (tmp_path / "served").mkdir()
    with serving(tmp_path / "served") as served:
        yield served


def read_or_message(path, open_it=read_layer):
    """What comes of reading a file, as text."""
    try:
        found = open_it(path)
        return str(found.attributes.to_dict()) + str(found.crs)
    except DataError as error:
        return f"refused: {error}"


@pytest.mark.parametrize("suffix", VECTOR_SUFFIXES)
def test_every_format_is_read(tmp_path, suffix):
    layer = read_layer(write(tmp_path / f"a{suffix}"))
    assert layer.crs == pyproj.CRS(4326).to_wkt() or layer.crs.to_epsg() == 4326
    order = np.argsort([shapely.bounds(each)[0] for each in layer.geometries])
    for own, written in zip(layer.geometries[order], FRAME.geometry, strict=True):
        assert shapely.equals_exact(shapely.normalize(own), shapely.normalize(written), 1e-6)
    read = layer.attributes.iloc[order]
    assert [value if isinstance(value, str) else None for value in read["kind"]] == ["forêt", None, "lake"]
    assert [int(value) for value in read["code"]] == [1, 2, 3]
    np.testing.assert_array_equal(read["share"].to_numpy(dtype=float), FRAME["share"])
    assert list(layer_names(tmp_path / f"a{suffix}").values()) == [True]
    upper = shutil.copy(tmp_path / f"a{suffix}", tmp_path / f"b{suffix.upper()}")
    assert is_vector(upper)
    if suffix != ".shp":  # whose other files have lower-case endings here
        assert len(read_layer(upper).geometries) == 3


def test_old_shapefiles_have_latin_letters(tmp_path):
    path = tmp_path / "a.shp"
    pyogrio.write_dataframe(FRAME, path, encoding="ISO-8859-1")
    path.with_suffix(".cpg").unlink()
    data = bytearray(path.with_suffix(".dbf").read_bytes())
    data[29] = 0  # the language
    path.with_suffix(".dbf").write_bytes(data)
    assert read_layer(path).attributes["kind"][0] == "forêt"


@pytest.mark.parametrize("suffix", VECTOR_SUFFIXES)
def test_a_file_that_is_cut_is_refused(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix}", FRAME.loc[FRAME.index.repeat(40)])
    for file in [path, *([path.with_suffix(".dbf"), path.with_suffix(".shx")] if suffix == ".shp" else [])]:
        data = file.read_bytes()
        for cut in np.random.default_rng(1).integers(1, len(data) - 20, 8):
            file.write_bytes(data[:cut])
            with pytest.raises(DataError, match="damaged, or not in the format of its extension"):
                read_layer(path)
        file.write_bytes(data)
    assert len(read_layer(path).geometries) == 120


def test_layers_are_named(tmp_path):
    path = write(tmp_path / "a.gpkg", layer="one")
    write(path, FRAME[["code", "geometry"]], layer="two", append=True)
    pyogrio.write_dataframe(FRAME[["code"]], path, layer="table", append=True)
    assert layer_names(path) == {"one": True, "two": True, "table": False}
    assert list(read_layer(path, "two").attributes) == ["code"]
    table = read_layer(path, "table")
    assert table.geometries is None
    assert table.attributes["code"].tolist() == [1, 2, 3]
    for layer in (None, "three"):
        with pytest.raises(DataError, match=r"its layers with geometries are one, two; give one with labels\.layer"):
            read_layer(path, layer, option="labels.layer")


def test_what_is_no_vector_file_is_refused(tmp_path):
    (tmp_path / "folder.gpkg").mkdir()
    (tmp_path / "a.csv").write_text("WKT\nPOINT (0 0)\n")
    with pytest.raises(DataError, match=r"a\.csv: \.csv is not a vector format .*; convert it to one of \.shp, \.gpkg"):
        read_layer(tmp_path / "a.csv")
    with pytest.raises(DataError, match="is a folder"):
        read_layer(tmp_path / "folder.gpkg")
    with pytest.raises(MissingFileError):
        read_layer(tmp_path / "none.gpkg")


# Attacks: a file under a harmless name says that its features are elsewhere.


def vrt(source):
    return (
        f'<OGRVRTDataSource><OGRVRTLayer name="secret"><SrcDataSource>{source}</SrcDataSource><GeometryField '
        'encoding="WKT" field="WKT"/></OGRVRTLayer></OGRVRTDataSource>'
    )


def pipeline(source):
    command = f"gdal vector pipeline ! read {source} ! write --of stream streamed_file"
    return json.dumps({"type": "gdal_streamed_alg", "command_line": command})


@pytest.mark.parametrize("suffix", VECTOR_SUFFIXES)
@pytest.mark.parametrize("attack", [vrt, pipeline])
def test_no_other_driver_opens_a_file(tmp_path, secret, server, suffix, attack):
    path = tmp_path / f"a{suffix}"
    for source in (secret, f"/vsicurl/{server.url('a.csv')}"):
        path.write_text(attack(source))
        assert read_or_message(path).startswith(f"refused: {path}: cannot be read as a vector file")
        assert SECRET not in read_or_message(path)
    assert not server.requests()


def test_the_attacks_work_on_gdal_itself(tmp_path, secret):
    """What is refused would otherwise be read: the attacks are real ones."""
    for suffix, attack in ((".geojson", vrt), (".kml", vrt), (".shp", vrt), (".gpkg", vrt)):
        (tmp_path / f"a{suffix}").write_text(attack(secret))
        assert SECRET in str(geopandas.read_file(tmp_path / f"a{suffix}").to_dict())


@pytest.mark.parametrize("use", ["labels", "split", "area", "points"])
def test_every_command_opens_vectors_in_this_way(tmp_path, secret, use):
    path = tmp_path / "a.geojson"
    path.write_text(vrt(secret))
    task = Task("binary", (LandCoverClass("a", 1),))
    act = {
        "labels": lambda: open_labels(LabelSource(path=str(path)), task, None),
        "split": lambda: spatial_split([], task, SpatialSplit(by="polygon", polygons=str(path), gap=0)),
        "area": lambda: read_aoi(path),
        "points": lambda: read_points(path),
    }[use]
    with pytest.raises(DataError, match="cannot be read as a vector file") as refused:
        act()
    assert SECRET not in str(refused.value)


def collection(**members):
    feature = {"type": "Feature", "properties": {"k": 1}, "geometry": json.loads(shapely.to_geojson(SQUARE))}
    return json.dumps({"type": "FeatureCollection", "features": [feature], **members})


def gml(doctype="", attributes="", srs="EPSG:4326", value="1", link=""):
    return (
        f'<?xml version="1.0"?>{doctype}<ogr:FeatureCollection {attributes} xmlns:ogr="http://ogr.maptools.org/" '
        'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xmlns:gml="http://www.opengis.net/gml" '
        'xmlns:xlink="http://www.w3.org/1999/xlink"><gml:featureMember><ogr:a fid="a.0"><ogr:geometryProperty>'
        f'<gml:Polygon {link} srsName="{srs}"><gml:outerBoundaryIs><gml:LinearRing><gml:coordinates>0,0 0,1 1,1 0,0'
        "</gml:coordinates></gml:LinearRing></gml:outerBoundaryIs></gml:Polygon></ogr:geometryProperty>"
        f"<ogr:k>{value}</ogr:k></ogr:a></gml:featureMember></ogr:FeatureCollection>"
    )


def schema(place):
    return (
        '<xs:schema targetNamespace="http://ogr.maptools.org/" xmlns:ogr="http://ogr.maptools.org/" '
        'xmlns:xs="http://www.w3.org/2001/XMLSchema" xmlns:gml="http://www.opengis.net/gml">'
        f'<xs:include schemaLocation="{place}"/><xs:element name="a" type="ogr:a_Type" '
        'substitutionGroup="gml:_Feature"/></xs:schema>'
    )


def kml(doctype="", more="", name="n", style="#s"):
    return (
        f'<?xml version="1.0"?>{doctype}<kml xmlns="http://www.opengis.net/kml/2.2"><Document>{more}<Placemark><name>'
        f"{name}</name><styleUrl>{style}</styleUrl><Polygon><outerBoundaryIs><LinearRing><coordinates>0,0 0,1 1,1 0,0"
        "</coordinates></LinearRing></outerBoundaryIs></Polygon></Placemark></Document></kml>"
    )


def test_references_within_a_format_are_not_followed(tmp_path, secret, server):
    url, path = server.url("x"), str(secret)
    entities = [f'<!DOCTYPE x [<!ENTITY e SYSTEM "{place}">]>' for place in (url, f"file://{path}")]
    location = "xsi:schemaLocation='http://ogr.maptools.org/ {}'"
    files = {
        ".geojson": [
            collection(crs={"type": kind, "properties": {key: place}})
            for kind, key in (("link", "href"), ("url", "url"), ("name", "name"))
            for place in (url, path)
        ],
        ".gml": [
            *(gml(doctype=one, value="&e;") for one in entities),
            gml(doctype=f'<!DOCTYPE x SYSTEM "{url}">'),
            *(gml(attributes=location.format(place)) for place in (url, f"{url}?SERVICE=WFS", f"/vsicurl/{url}")),
            *(gml(srs=place) for place in (url, path)),
            gml(link=f'xlink:href="{url}#a"'),
        ],
        ".kml": [
            *(kml(doctype=one, name="&e;") for one in entities),
            kml(more=f"<NetworkLink><Link><href>{url}</href></Link></NetworkLink>"),
            kml(style=f"{url}#a"),
            kml(more=f"<GroundOverlay><Icon><href>{url}</href></Icon></GroundOverlay>"),
        ],
    }
    for suffix, texts in files.items():
        for number, text in enumerate(texts):
            file = tmp_path / f"{number}{suffix}"
            file.write_text(text)
            assert SECRET not in read_or_message(file), text
            assert not server.requests(), text
    assert "refers to a URL" in read_or_message(tmp_path / "0.geojson")
    assert not list(tmp_path.glob("*.gfs")), "GDAL writes a file beside a GML file"


@pytest.mark.parametrize("prefix", ["", "/vsicurl/"])
def test_schemas_beside_a_gml_file_are_not_followed(tmp_path, server, prefix):
    path = tmp_path / "a.gml"
    path.write_text(gml())
    path.with_suffix(".xsd").write_text(schema(prefix + server.url("x.xsd")))
    assert "includes another schema" in read_or_message(path)
    other = tmp_path / "other.xsd"
    path.with_suffix(".xsd").rename(other)
    path.write_text(gml(attributes='xsi:schemaLocation="http://ogr.maptools.org/ other.xsd"'))
    assert "'k': {0: 1}" in read_or_message(path)
    assert not server.requests()


def test_files_beside_a_shapefile_are_not_followed(tmp_path, secret, server):
    path = write(tmp_path / "a.shp", FRAME.iloc[[0]])
    for text in (server.url("crs"), vrt(secret), str(secret), f"+init={secret}:1"):
        for suffix in (".prj", ".cpg", ".dbf"):
            before = path.with_suffix(suffix).read_bytes()
            path.with_suffix(suffix).write_text(text)
            assert SECRET not in read_or_message(path)
            path.with_suffix(suffix).write_bytes(before)
    assert not server.requests()


def add_layer(path, view, *more):
    """Add a layer that is a view to a GeoPackage, whose own layer goes."""
    write(path, FRAME[["code", "geometry"]].iloc[[0]], layer="a")
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA writable_schema = 1")
        for kind, name, sql in (*more, ("view", "w", view)):
            database.execute("INSERT INTO sqlite_master VALUES (?, ?, ?, 0, ?)", (kind, name, name, sql))
        database.execute("UPDATE gpkg_contents SET table_name = 'w', identifier = 'w'")
        database.execute("UPDATE gpkg_geometry_columns SET table_name = 'w'")
    database.close()
    return path


def test_a_geopackage_reads_no_other_file(tmp_path, secret, server):
    tables = {
        "VirtualText": f"'{secret}', UTF-8, 1, COMMA, DOUBLEQUOTE, ','",
        "VirtualOGR": f"'/vsicurl/{server.url('a.csv')}'",
        "VirtualShape": f"'{secret.with_suffix('')}', UTF-8, 4326",
    }
    view = "CREATE VIEW w AS SELECT a.fid AS fid, a.geom AS geom, v.name AS name FROM a, v"
    for module, arguments in tables.items():
        for text in (
            f"CREATE VIRTUAL TABLE v USING {module}({arguments})",
            f"create/**/virtual table v using {module}({arguments})",
        ):
            path = add_layer(tmp_path / "a.gpkg", view, ("table", "v", text))
            assert "table 'v' is a virtual table that may read other files" in read_or_message(path)
            path.unlink()
    for function in (
        f"ogr_geocode('{SECRET}', 'geometry', 'QUERY_TEMPLATE={server.url('q')}?%s')",
        f"gdal_get_pixel_value('/vsicurl/{server.url('x.tif')}', 1, 'pixel', 0, 0)",
        f"ogr_datasource_load_layers('{secret}')",
        "load_extension('/tmp/x')",
    ):
        path = add_layer(tmp_path / "a.gpkg", f"CREATE VIEW w AS SELECT fid, geom, {function} AS name FROM a")
        assert read_or_message(path).startswith("refused")
        path.unlink()
    assert not server.requests()
    # A view over the file's own tables is read.
    path = add_layer(tmp_path / "a.gpkg", "CREATE VIEW w AS SELECT fid AS OGC_FID, geom, code + 1 AS name FROM a")
    assert read_layer(path).attributes["name"].astype(int).tolist() == [2]


def test_a_geoparquet_names_no_other_file(tmp_path, secret, server):
    import pyarrow.parquet as pq

    table = pq.read_table(write(tmp_path / "a.parquet"))
    about = json.loads(table.schema.metadata[b"geo"])
    for crs in (server.url("crs"), str(secret), f"+init={secret}:1"):
        about["columns"]["geometry"]["crs"] = crs
        pq.write_table(table.replace_schema_metadata({b"geo": json.dumps(about)}), tmp_path / "b.parquet")
        assert SECRET not in read_or_message(tmp_path / "b.parquet")
    assert not server.requests()


def test_no_other_module_opens_vector_files():
    """Only `vector/formats/ogr.py` does: what it has written itself."""
    opening = re.compile(r"\b(read_file|read_dataframe|read_arrow|open_arrow|raw\.read|list_layers|read_parquet)\(")
    folder = Path(segkit.__file__).parent
    found = {str(file.relative_to(folder)) for file in folder.rglob("*.py") if opening.search(file.read_text())}
    assert found - {"vector/formats/ogr.py"} == {"io/vector.py"}


def test_no_driver_of_the_list_reads_elsewhere_by_design():
    listed = {one for each in DRIVERS.values() for one in each}
    assert not {"OGR_VRT", "GDALG", "WFS", "OAPIF", "CSV", "SQLite"} & listed
