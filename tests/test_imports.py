"""Directions of imports: between applications and library, and inside ic_jax between layers."""

import ast
import re
import subprocess
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
# reads the publishers' tokenizers in convert; `infer bench --vs torch` measures the others.
ORACLES = {"diffusers", "tensorflow", "torch", "transformers"}
MAY_IMPORT_ORACLES = {
    "convert": {"transformers"},
    "infer/bench/versus_torch.py": {"diffusers", "torch"},
    "infer/comfyui/ic_jax_node.py": {"torch"},  # runs in ComfyUI, whose pictures are its tensors
}

# Parts of ic_jax, files and packages, from the lowest layer up. A part imports from lower layers
# only.
LAYERS = (
    {"signals", "terminal", "untrusted_files"},
    {"devices", "files", "from_dict", "host_memory", "sharding", "text_files", "version"},
    {"base_config", "cli_options", "contact_sheet", "keywords", "multihost"},
    {"config"},
    {"compilation_cache", "flow", "models", "preprocessing", "progress"},
    {"sampler", "weights"},
    {"activations", "auto_mesh", "cli", "matting", "noised_originals"},
    {"memory", "planning", "runner"},
    {"components", "lora_methods", "measuring", "result", "subjects"},
    {"request"},
    {"encode_methods"},
    {"pipeline"},
    {"__init__"},
)
LAYER = {part: number for number, parts in enumerate(LAYERS) for part in parts}


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


def part_of(module: str) -> str:
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
    for file in files:
        name = file.relative_to(ROOT).as_posix()
        allowed = MAY_IMPORT_ORACLES.get(package, set()) | MAY_IMPORT_ORACLES.get(name, set())
        crossing = {name.split(".")[0] for name in imports(file)} & forbidden - allowed
        assert not crossing, f"{name} imports {crossing}"
    assert files


def test_names_of_this_repository_do_not_clash():
    """A file that needs two things of one name imports one of them under another name."""
    for file in (file for package in MAY_IMPORT for file in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in OURS:
                renamed = [a.name for a in node.names if a.asname not in (None, a.name)]
                assert not renamed, f"{file.relative_to(ROOT)} renames {renamed} of {node.module}"


def test_parts_of_the_library_import_lower_layers():
    for module, file in modules().items():
        part = part_of(module)
        assert part in LAYER, f"{part} has no layer; add it to LAYERS"
        for name in imports(file):
            if not name.startswith("ic_jax."):
                continue
            target = name.split(".")[1]
            if target in LAYER and target != part:
                assert LAYER[target] < LAYER[part], f"{module} imports {name}, not below it"
            else:
                assert target == part, f"{module} imports {name} from the library's front"
    assert set(map(part_of, modules())) == set(LAYER), "LAYERS has parts that are gone"


def test_parts_of_the_example_import_lower_layers():
    layers = {"world": 0, "base_model": 1, "evaluation": 1, "experiments": 2}
    for part, layer in layers.items():
        for file in (ROOT / "examples" / "open_peeps" / part).glob("*.py"):
            for name in imports(file):
                if name.startswith("examples.open_peeps."):
                    target = name.split(".")[2]
                    assert target == part or layers[target] < layer, f"{file} imports {name}"


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


def test_a_start_imports_no_library_that_few_commands_need():
    """A third of a second for the Hub's, a quarter for scipy; their imports are in functions.

    Training, which writes for TensorBoard, needs no three seconds of torch either.
    """
    late = {"gradio", "huggingface_hub", "onnxruntime", "pyarrow", "scipy", "starlette"}
    script = (
        "import sys\n"
        "import ic_jax, convert.commands, infer.commands, train.commands\n"
        f"assert not (found := {late} & set(sys.modules)), found\n"
        "import train.loop\n"
        "assert not (found := {'torch', 'transformers'} & set(sys.modules)), found\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_the_wheel_depends_on_exactly_what_the_library_imports():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.match(r"[\w-]+", line)[0] for line in project["dependencies"]}
    names = {name.split(".")[0] for file in modules().values() for name in imports(file)}
    names -= sys.stdlib_module_names | {"ic_jax"}
    names -= {"onnxruntime"}  # of the extra `matting`; imported where a network is loaded
    assert {{"PIL": "pillow"}.get(name, name) for name in names} == declared
