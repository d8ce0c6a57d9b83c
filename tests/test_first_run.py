"""The page of the first run: its commands, as they stand, with the numbers of steps cut."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import CACHE

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "first-run.md"
FEWER = {"steps": 4, "effect_every": 2, "preview_every": 4, "preview_steps": 1, "batch": 4}


def commands():
    return re.findall(r"^    python -m (.+)$", PAGE.read_text(), re.MULTILINE)


def test_the_page_goes_from_pictures_to_torch():
    words = [" ".join(command.split()[:2]) for command in commands()]
    first = ["examples.open_peeps.world write", "train prepare", "train new", "train first.toml"]
    assert words[:4] == first
    assert words[-3:] == ["train export", "infer --model", "convert to-torch"]


@pytest.mark.slow  # compiles the small model's training and sampling
def test_its_commands_run_as_they_stand(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(CACHE)}
    for command in commands():
        ended = subprocess.run(
            f"{sys.executable} -m {command}",
            shell=True,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, (command, ended.stderr)
        if "train new" in command:
            recipe = tmp_path / "first.toml"
            text = recipe.read_text()
            for key, value in FEWER.items():
                text = re.sub(rf"^{key} = \d+", f"{key} = {value}", text, flags=re.MULTILINE)
            recipe.write_text(text)
    assert (tmp_path / "first.png").stat().st_size > 0
    assert "reference effect" in (tmp_path / "runs" / "first" / "metrics.jsonl").read_text()
    assert (tmp_path / "torch" / "instantcharacter_ip-adapter.bin").is_file()
    assert "Reference effect:" in (tmp_path / "models" / "first" / "README.md").read_text()
