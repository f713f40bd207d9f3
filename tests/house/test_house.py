"""The house: its map is true, its files can be read whole, and every room has its place in the layers."""

import ast
import importlib
import re
import tomllib
from importlib.util import find_spec

import pytest
from paths import ROOT

PACKAGE = ROOT / "vit_jax"
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py")
MOST_LINES = 320


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_can_be_read_whole(path):
    assert len(path.read_text().splitlines()) <= MOST_LINES


def test_the_map_of_the_readme_names_every_module_and_nothing_else():
    readme = (ROOT / "README.md").read_text()
    (listed,) = re.findall(r"```\ntrain\.py .*?```", readme, flags=re.S)
    rooms = dict.fromkeys(("models", "weights", "data", "training", "run", "analysis", "cli"), "")
    for room in rooms:
        (rooms[room],) = re.findall(rf"\n  {room}/ (.*?)(?=\n  \w|\ntests/)", listed, flags=re.S)
    for path in MODULES:
        text = rooms.get(path.relative_to(PACKAGE).parts[0], listed)
        assert re.search(rf"\b{path.stem}\b", text), path
    for name in re.findall(r"[\w/]+\.py", listed):
        assert list(ROOT.glob(name)) or list(PACKAGE.rglob(name)) or list(ROOT.glob(f"*/{name}")), name


def test_pages_are_short_and_their_links_lead_somewhere():
    assert len((ROOT / "README.md").read_text().split()) <= 1300
    site = [path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts]
    pages = [*ROOT.glob("*.md"), *site, ROOT / "benchmarks" / "README.md"]
    for page in pages:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), (page, target)


def test_every_room_has_its_place_in_the_layers():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    layers = config["tool"]["importlinter"]["contracts"][0]["layers"]
    placed = {name.strip() for layer in layers for name in layer.split("|")}
    found = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert {name.removeprefix("vit_jax.") for name in placed} == found - {"__init__"}


def test_no_modules_import_each_other_in_a_circle():
    names = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in MODULES}
    imports = {name: _imports(path) & names.keys() for name, path in names.items()}
    while free := [name for name, found in imports.items() if not found & imports.keys()]:
        for name in free:
            del imports[name]
    assert not imports


def _imports(path):
    """Modules imported when `path` is: not those inside functions, nor for type checkers alone."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_tests_lie_in_folders_of_rooms():
    rooms = {p.name for p in PACKAGE.iterdir() if p.is_dir()} | {"config", "benchmarks", "house"}
    assert {p.parent.name for p in (ROOT / "tests").rglob("test_*.py")} <= rooms


@pytest.mark.parametrize("name", ["layers", "stack", "vit"])
def test_equations_hold_no_trick_for_a_processor(name):
    text = (PACKAGE / "models" / f"{name}.py").read_text()
    assert not re.search(r"custom_vjp|custom_jvp|platform_dependent", text)


def test_benchmarks_import_what_there_is():
    for path in (ROOT / "benchmarks").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vit_jax"):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    found = hasattr(module, alias.name) or find_spec(f"{node.module}.{alias.name}")
                    assert found, (path, node.module, alias.name)
