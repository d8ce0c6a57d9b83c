"""Every place that opens a file for reading, and the rule that it is under.

A reader that is new has to be entered here. "others'" files are read through
`ic_jax.untrusted_files`, which asks for a regular file of limited size; what else reads such a file
says why it may.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("ic_jax", "convert", "train", "infer")
# Calls that open or parse a file, by the last part of their name.
READING = {"open", "read_text", "read_bytes", "load", "memmap", "from_file", "ZipFile"}
READING |= {"GGUFReader", "read_table", "ParquetFile", "builder_from_directory", "Unpickler"}
SAFE = {"read_bytes", "read_text"}  # as plain names: of untrusted_files and text_files
NOT_FILES = {"ModelFolder.open", "cls.open", "jnp.load"}

SYSTEM = "the system's own file"
CHECKED = "the file was opened by the rules just before, and is mapped or decoded by a library"
WRITTEN = "written by this process, or by an earlier one of the same run"
RULES = {
    "ic_jax/compilation_cache.py": SYSTEM,
    "ic_jax/files.py": WRITTEN,  # also SHA-256 of any file, which reads in pieces
    "ic_jax/host_memory.py": SYSTEM,
    "ic_jax/measuring/kernel_profile.py": WRITTEN,
    "ic_jax/measuring/origin.py": SYSTEM,
    "ic_jax/preprocessing/images.py": "a picture: kind and size are looked at, formats listed",
    "ic_jax/preprocessing/tokenizers.py": CHECKED,
    "ic_jax/terminal.py": SYSTEM,
    "ic_jax/untrusted_files.py": "the rules themselves",
    "ic_jax/weights/tensors.py": CHECKED,
    "convert/gguf_read.py": CHECKED,
    "convert/torch_read.py": CHECKED,
    "infer/bench/every_part.py": WRITTEN,
    "infer/engine/characters.py": "a picture of limited bytes in memory, formats listed",
    "infer/comfyui/ic_jax_node.py": "a picture of the user's own server, of limited bytes",
    "infer/picture_file.py": "a picture: formats listed, its text is limited",
    "train/data/card.py": WRITTEN,
    "train/data/dataset.py": "an index: its size is the card's, and no pickle is read",
    "train/data/decode.py": "a picture of limited bytes in memory, formats listed",
    "train/data/programs.py": "what the user's own program wrote",
    "train/data/shards.py": WRITTEN,
    "train/data/sources/tables.py": CHECKED,
    "train/data/sources/tars.py": CHECKED,
    "train/report.py": WRITTEN,
}


def readings(file):
    """Return the calls of a file that open or parse a file for reading."""
    calls = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        last = name.rpartition(".")[2]
        if last not in READING or name in SAFE | NOT_FILES or "json" in name:
            continue
        modes = [a.value for a in node.args if isinstance(a, ast.Constant)]
        if not {"w", "wb", "a"} & {mode for mode in modes if isinstance(mode, str)}:
            calls.add(name)
    return calls


def test_every_opening_is_under_a_rule():
    openings = {
        file.relative_to(ROOT).as_posix(): calls
        for package in PACKAGES
        for file in sorted((ROOT / package).rglob("*.py"))
        if (calls := readings(file))
    }
    assert {name: calls for name, calls in openings.items() if name not in RULES} == {}
    assert sorted(RULES.keys() - openings.keys()) == []


def test_nothing_that_runs_code_reads_a_file():
    forbidden = {"pickle.load", "pickle.loads", "torch.load", "eval", "exec", "yaml.load"}
    forbidden |= {"builder_from_directory", "tfds.builder_from_directory", "import_module"}
    by_name = {"ic_jax/cli.py"}  # imports the modules of commands, whose names are in the code
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            if file.relative_to(ROOT).as_posix() in by_name:
                continue
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call):
                    assert ast.unparse(node.func) not in forbidden, f"{file}: {node.lineno}"
