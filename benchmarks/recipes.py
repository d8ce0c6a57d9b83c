"""Plans of the recipes in docs/recipes, compiled for machines that are not attached.

    pip install -e '.[train,cuda13,tpu]'
    python -m benchmarks.recipes                 # all of them
    python -m benchmarks.recipes h100 8xh100     # those of these names

Writes the reports of `python -m train plan` to recipes.json, a recipe at a time. Each stage of
another size or batch takes minutes of two cores.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from ic_jax.measuring.origin import origin

RECIPES = {
    "h100": "h100:1",
    "h200": "h200:1",
    "8xh100": "h100:8",
    "v5e-16": "v5e:4x4",
}
PACKAGES = ("jax", "flax", "libtpu", "jax-cuda13-plugin")
RESULTS = Path(__file__).with_suffix(".json")


def main(names: list[str]) -> None:
    for name in names or RECIPES:
        command = f"train plan docs/recipes/{name}.toml --topology {RECIPES[name]}"
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "plan.json"
            subprocess.run([sys.executable, "-m", *command.split(), "--json", file], check=True)
            plans = json.loads(file.read_text())
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        results[command] = {"plans": plans, **origin(*PACKAGES)}
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
