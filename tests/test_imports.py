"""The law of imports: between packages one direction, inside ic_jax only towards lower floors."""

import ast
import re
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Top-level packages of this repository that each package may import, itself aside.
MAY_IMPORT = {
    "ic_jax": set(),
    "convert": {"ic_jax"},
    "infer": {"ic_jax"},
    "train": {"ic_jax"},
    "examples": {"ic_jax", "train"},
}
OURS = {*MAY_IMPORT, "benchmarks", "tests"}
# Foreign libraries that nothing imports at run time: they are oracles of the tests. transformers
# reads the publishers' tokenizers in convert.
ORACLES = {"diffusers", "tensorflow", "torch", "transformers"}

# Rooms of ic_jax, files and packages, from the ground up. An import from one room to another goes
# to a lower floor.
FLOORS = (
    {"devices", "files", "from_dict", "sharding", "version"},
    {"config", "multihost"},
    {"compilation_cache", "flow", "models", "preprocessing"},
    {"sampler", "weights"},
    {"auto_mesh", "cli"},
    {"planning", "runner"},
    {"request"},
    {"pipeline"},
    {"__init__"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def imports(file: Path, *, lazy: bool = True) -> set[str]:
    """Return the dotted names that a file imports; without `lazy`, at module level alone."""
    tree = ast.parse(file.read_text())
    names = set()
    for node in ast.walk(tree) if lazy else tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room_of(module: str) -> str:
    """Return the file or package of ic_jax that a module belongs to."""
    return module.split(".")[1] if "." in module else "__init__"


def modules() -> dict[str, Path]:
    """Return the files of ic_jax by their module's dotted name."""
    files = sorted((ROOT / "ic_jax").rglob("*.py"))
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    return {n.removesuffix(".__init__"): file for n, file in zip(names, files, strict=True)}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_in_one_direction(package):
    files = sorted((ROOT / package).rglob("*.py"))
    forbidden = (OURS | ORACLES) - MAY_IMPORT[package] - {package}
    if package == "convert":
        forbidden -= {"transformers"}
    for file in files:
        crossing = {name.split(".")[0] for name in imports(file)} & forbidden
        assert not crossing, f"{file.relative_to(ROOT)} imports {crossing}"
    assert files


def test_names_of_this_repository_do_not_clash():
    """A file that needs two things of one name imports one of them under another name."""
    for file in (file for package in MAY_IMPORT for file in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in OURS:
                renamed = [a.name for a in node.names if a.asname not in (None, a.name)]
                assert not renamed, f"{file.relative_to(ROOT)} renames {renamed} of {node.module}"


def test_rooms_of_the_library_import_lower_floors():
    for module, file in modules().items():
        room = room_of(module)
        assert room in FLOOR, f"{room} has no floor; add it to FLOORS"
        for name in imports(file):
            if not name.startswith("ic_jax."):
                continue
            target = name.split(".")[1]
            if target in FLOOR and target != room:
                assert FLOOR[target] < FLOOR[room], f"{module} imports {name}, not below it"
            else:
                assert target == room, f"{module} imports {name} from the library's front"
    assert set(map(room_of, modules())) == set(FLOOR), "FLOORS has rooms that are gone"


def test_rooms_of_the_example_import_lower_floors():
    floors = {"world": 0, "base_model": 1, "evaluation": 1, "experiments": 2}
    for room, floor in floors.items():
        for file in (ROOT / "examples" / "open_peeps" / room).glob("*.py"):
            for name in imports(file):
                if name.startswith("examples.open_peeps."):
                    target = name.split(".")[2]
                    assert target == room or floors[target] < floor, f"{file} imports {name}"


def test_modules_of_the_library_have_no_cycle():
    names = modules()
    graph = {
        module: {
            name if name in names else name.rpartition(".")[0]
            for name in imports(file, lazy=False)
            if name.startswith("ic_jax.")
        }
        - {module}
        for module, file in names.items()
    }
    assert len(list(TopologicalSorter(graph).static_order())) == len(names)


def test_the_wheel_depends_on_exactly_what_the_library_imports():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.match(r"[\w-]+", line)[0] for line in project["dependencies"]}
    names = {name.split(".")[0] for file in modules().values() for name in imports(file)}
    names -= sys.stdlib_module_names | {"ic_jax"}
    assert {{"PIL": "pillow"}.get(name, name) for name in names} == declared
