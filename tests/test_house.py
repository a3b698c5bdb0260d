"""Imports go one way, downwards: the floors of docs/architecture.md."""

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter

import pytest
from house import HOUSE, modules

ARCHITECTURE = (HOUSE.parent / "docs" / "architecture.md").read_text()
# A room is a file or a folder of segkit/.
FLOORS = [
    {"errors", "runtime"},
    {"task", "io"},
    {"recipe", "vector", "maps", "plots"},
    {"models", "data"},
    {"inference"},
    {"evaluation", "exporting"},
    {"training", "assess", "labelling", "reporting", "auditing"},
    {"demo", "plot", "__init__"},
    {"cli", "__main__"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def imports(source, names):
    """Names of segkit's modules that a source names, anywhere in it: in functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: relative import; name the module in full"
            wanted = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in wanted:
            if name == "segkit" or name.startswith("segkit."):
                below = name.split(".")[1:]
                # The longest part that is a module: "from segkit.data import tiles", "from segkit.task import Task".
                while below and ".".join(below) not in names:
                    below.pop()
                yield ".".join(below) or "__init__"


def room(name):
    return name.split(".")[0]


def faults(sources):
    """What is wrong with the house, one line each; `sources` is {module: source text}."""
    graph = {name: set(imports(source, sources)) - {name} for name, source in sources.items()}
    nameless = sorted({room(name) for name in graph} - FLOOR.keys())
    if nameless:
        return [f"segkit/{name} has no floor; give it one in FLOORS and in docs/architecture.md" for name in nameless]
    found = [
        f"{name} (floor {FLOOR[room(name)]}) imports {below} (floor {FLOOR[room(below)]})"
        for name, belows in graph.items()
        for below in sorted(belows)
        if FLOOR[room(below)] > FLOOR[room(name)]
    ]
    # Neighbours may use each other, in one direction: rooms by rooms, and modules within a room.
    rooms: dict[str, set[str]] = {}
    for name, belows in graph.items():
        rooms.setdefault(room(name), set()).update({room(below) for below in belows} - {room(name)})
    for what in (rooms, graph):
        try:
            TopologicalSorter(what).prepare()
        except CycleError as error:
            found.append(f"imports run in a circle: {' -> '.join(reversed(error.args[1]))}")
    return found


def test_imports_only_go_down():
    assert not faults({name: file.read_text() for name, file in modules().items()})


@pytest.mark.parametrize(
    ("sources", "fault"),
    [
        (
            {"task.task": "def f():\n    from segkit.data.split import Area", "data.split": ""},
            "task.task (floor 1) imports",
        ),
        (
            {"task": "if TYPE_CHECKING:\n    import segkit.models", "models": ""},
            "task (floor 1) imports models (floor 3)",
        ),
        ({"io.grid": "from segkit import Task", "__init__": ""}, "io.grid (floor 1) imports __init__ (floor 7)"),
        ({"training.train": "from segkit import cli", "cli": ""}, "training.train (floor 6) imports cli (floor 8)"),
        ({"training": "import segkit.assess", "assess": "import segkit.training"}, "imports run in a circle: "),
        ({"data.a": "import segkit.data.b", "data.b": "from segkit.data import a"}, "imports run in a circle: "),
        (
            {"maps.a": "import segkit.vector.b", "vector.b": "", "vector.c": "import segkit.maps.a"},
            "imports run in a circle: ",
        ),
        ({"novel": ""}, "segkit/novel has no floor"),
        ({"models": "from segkit.vector.write import x", "vector.write": "", "vector": ""}, None),
        ({"data.a": "from segkit.data.b import x", "data.b": "from segkit.task import Task", "task": ""}, None),
    ],
)
def test_the_walk_finds_what_goes_up(sources, fault):
    found = faults(sources)
    assert (fault in found[0]) if fault else not found


def test_the_drawing_shows_the_imports():
    """`python tools/draw_imports.py` makes it anew."""
    done = subprocess.run([sys.executable, "tools/draw_imports.py", "--check"], cwd=HOUSE.parent, check=False)
    assert done.returncode == 0


def test_the_table_of_packages_lists_every_module():
    rows = re.findall(r"^\| \d? ?\| `(\w+)/`.*$", ARCHITECTURE, re.MULTILINE)
    texts = {row: next(line for line in ARCHITECTURE.splitlines() if f"| `{row}/`" in line) for row in rows}
    assert texts.keys() == {path.name for path in HOUSE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    for package, text in texts.items():
        for file in (HOUSE / package).glob("[a-z]*.py"):
            assert re.search(rf"\b{file.stem}\b", text), f"docs/architecture.md: {package}/ without {file.stem}"


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "docs/architecture.md", "README.md"])
def test_documents_name_files_that_exist(document):
    text = (HOUSE.parent / document).read_text()
    for path in re.findall(r"`((?:[\w.]+/)+(?:[\w.]+\.\w+)?)`", text):
        folders = (HOUSE.parent, HOUSE, *HOUSE.iterdir())
        assert any((folder / path).exists() for folder in folders), f"{document} names {path}"


def test_tests_lie_in_folders_like_the_modules_they_test():
    """A few test what has no module of its own: the public functions of packages, and what all modules promise."""
    others = {"vector/test_vectorize", "data/test_labels", "demo/test_landscape", "cli/test_advice"}
    others |= {"faults/test_damage", "faults/test_readers", "faults/test_trust"}
    others |= {"faults/test_environment", "faults/test_full_disk", "faults/test_interruption"}
    for file in (HOUSE.parent / "tests").glob("*/**/test_*.py"):
        name = file.relative_to(HOUSE.parent / "tests").with_suffix("")
        module = HOUSE / name.parent / f"{name.name.removeprefix('test_')}.py"
        assert module.exists() or str(name) in others, f"{name} tests no module of its name"


def test_test_files_have_names_of_their_own():
    """Folders of tests are no packages, so pytest imports two files of one name as the same module."""
    names = [file.name for file in (HOUSE.parent / "tests").glob("**/test_*.py")]
    assert sorted(set(names)) == sorted(names)


def test_the_walks_of_contributing_name_what_exists():
    text = (HOUSE.parent / "CONTRIBUTING.md").read_text()
    source = {
        path: (HOUSE / path).read_text()
        for path in re.findall(r"`((?:\w+/)+\w+\.py)`", text)
        if (HOUSE / path).exists()
    }
    found = re.findall(r"`([\w.]+)` \(`((?:\w+/)+\w+\.py)`\)", text.replace("\n", " "))
    assert len(found) > 8
    for name, path in found:
        assert re.search(rf"(def|class) {name.rpartition('.')[2]}\b", source[path]), (name, path)


def system_encoded(source):
    """Lines that read or write text in the encoding of the system, which on Windows is not UTF-8."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or any(keyword.arg == "encoding" for keyword in node.keywords):
            continue
        name, called = getattr(node.func, "attr", getattr(node.func, "id", "")), ast.unparse(node.func)
        texts = [one.value for one in node.args[:2] if isinstance(one, ast.Constant) and isinstance(one.value, str)]
        opens_text = any(re.fullmatch("[rwax+t]+", text) for text in texts) or "newline" in {
            keyword.arg for keyword in node.keywords
        }
        if name in {"read_text", "write_text"} or (name == "open" and opens_text and called != "rasterio.open"):
            yield node.lineno


def test_text_files_are_utf_8_on_every_system():
    reads = "a.read_text()\nopen('b.txt', 'w')\na.open('w', newline='')\na.write_text('b')"
    assert list(system_encoded(reads)) == [1, 2, 3, 4]
    assert not list(system_encoded("a.read_text(encoding='utf-8')\nopen('b.txt', 'rb')\nrasterio.open(a, 'w')"))
    found = [f"{file}:{line}" for file in HOUSE.rglob("*.py") for line in system_encoded(file.read_text("utf-8"))]
    assert not found, "give encoding='utf-8'"
