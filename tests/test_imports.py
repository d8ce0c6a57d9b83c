"""One arrow of imports: applications import the library, never each other, never the reverse."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
APPLICATIONS = ("convert", "train", "infer")


def imported(file: Path) -> set[str]:
    """Top-level packages that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found.add((node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("package", ["ic_jax", *APPLICATIONS])
def test_no_application_is_imported_by_others(package):
    files = sorted((ROOT / package).rglob("*.py"))
    forbidden = {
        *APPLICATIONS,
        "examples",
        "tests",
        "torch",
        "tensorflow",
        "transformers",
        "diffusers",
    }
    for file in files:
        crossing = imported(file) & (forbidden - {package})
        assert not crossing, f"{file.relative_to(ROOT)} imports {crossing}"
    assert files
