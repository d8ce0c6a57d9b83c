"""Without the packages of an extra: --help works, and a command that lacks one says so."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from ic_jax import cli
from train.commands import COMMANDS

ROOT = Path(__file__).parent.parent
# Of packages that our own code asks for: flax and huggingface_hub bring some of them.
BLOCKED = """
import sys
blocked = {packages}

class Finder:
    def find_spec(self, name, path=None, target=None):
        frame = sys._getframe(1)
        while "importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        package = name.split(".")[0]
        if package in blocked and "site-packages" not in frame.f_code.co_filename:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Finder())
"""
HELP = """
from importlib import import_module
for program in {programs}:
    module = import_module(f"{{program}}.commands")
    for command in module.COMMANDS:
        try:
            module.main([command.name, "--help"])
        except SystemExit as end:
            assert not end.code, (program, command.name)
        print("helped", program, command.name)
"""


def run_without(packages, script):
    code = BLOCKED.format(packages=set(packages)) + script
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def test_help_of_every_command_works_without_extras():
    packages = [package for extra in cli.EXTRAS.values() for package in extra]
    programs = ["train", "infer", "convert"]
    rooms = (ROOT / "examples" / "open_peeps").glob("*/commands.py")
    programs += [f"examples.open_peeps.{room.parent.name}" for room in rooms]
    assert len(programs) > 7
    ended = run_without(packages, HELP.format(programs=programs))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("helped train") == len(COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["run", "docs/recipes/h100.toml"], "train"),
        (["prepare", "docs", "--out", "/nowhere/data"], "train"),
    ],
)
def test_a_missing_package_is_one_line(arguments, extra):
    script = f"from train.commands import main; sys.exit(main({arguments}))"
    ended = run_without(cli.EXTRAS[extra], script)
    assert ended.returncode == 2
    assert re.fullmatch(
        rf"error: \w+ is not installed; pip install -e '\.\[{extra}\]' in the checkout\n",
        ended.stderr,
    )


def test_an_example_names_the_extra_that_it_needs():
    script = "from examples.open_peeps.world.commands import main\n"
    script += "sys.exit(main(['prepare', '--out', '/nowhere/data']))"
    ended = run_without(["tensorflow_datasets"], script)
    assert ended.returncode == 2
    assert "error: tensorflow_datasets is not installed; pip install" in ended.stderr


def test_the_extras_are_those_of_the_project():
    """By the names of imports, which are those of the packages but for a few."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    imports = {"absl_py": "absl", "orbax_checkpoint": "orbax"}
    for extra, packages in cli.EXTRAS.items():
        names = [re.match(r"[\w-]+", x)[0] for x in project["optional-dependencies"][extra]]
        names = [name.replace("-", "_") for name in names]
        missing = {imports.get(name, name) for name in names} - set(packages)
        assert missing <= {"tqdm", "tensorboard"}  # elsewhere in the table; read by another program
