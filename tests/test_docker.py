"""docs/docker/Dockerfile: what it copies and installs exists, and its images run without rights."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILE = ROOT / "docs" / "docker" / "Dockerfile"
TARGETS = ("cuda", "tpu", "cpu")


def stages():
    """Return the instructions of each stage, as (name, arguments), by the stage's name."""
    text = re.sub(r"^#.*\n|\\\n", "", FILE.read_text(), flags=re.MULTILINE)
    found = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, _, arguments = line.partition(" ")
        if name == "FROM":
            base, _, stage = arguments.partition(" AS ")
            found[stage] = []
        found[stage].append((name, base if name == "FROM" else arguments))
    return found


def test_what_is_copied_exists():
    for stage, instructions in stages().items():
        for name, arguments in instructions:
            if name == "COPY" and not arguments.startswith("--from="):
                *sources, _ = arguments.split()
                assert [s for s in sources if not (ROOT / s).exists()] == [], stage
    # README's programs, and nothing that they do without.
    (code,) = (s for n, s in stages().items() if n == "code")
    copied = {arguments.split()[0] for name, arguments in code if name == "COPY"}
    assert copied == {"ic_jax", "convert", "infer", "train"}


def test_what_is_installed_are_extras_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    installed = re.findall(r"pip install -e '\.\[([\w,]+)\]'", FILE.read_text())
    assert len(installed) == 3
    names = {name for extras in installed for name in extras.split(",")}
    assert names <= set(project["optional-dependencies"])
    assert {"tpu", "cuda13"} <= names


def test_the_base_is_pinned_and_of_a_python_that_is_supported():
    (base,) = (arguments for name, arguments in stages()["base"] if name == "FROM")
    version = re.fullmatch(r"python:3\.(\d+)\.\d+-slim-\w+", base)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    low, high = re.findall(r"3\.(\d+)", project["requires-python"])
    assert int(low) <= int(version[1]) < int(high)


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_without_rights_in_a_folder_of_its_own(target):
    own = stages()[target]
    assert own[0] == ("FROM", "base")
    assert own[-2:] == [("WORKDIR", "/work"), ("USER", "1000")]
    inherited = dict(stages()["base"])
    assert (inherited["ENTRYPOINT"], inherited["CMD"]) == ('["python", "-m"]', '["infer"]')
    assert inherited["VOLUME"] == "/cache"
    assert list(stages())[-1] == "cpu"  # what is built without --target
