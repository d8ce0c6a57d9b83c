"""What drawing and training at full size need on TPUs, planned without owning any.

    pip install 'jax[tpu]' && python -m benchmarks.plans

Runs the plans below one after the other and keeps what they say in plans.json. Each takes minutes
of one core; those that are there already, from the same commit, are not run again.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.origin import origin

PLANS = (
    "infer plan --topology v6e:2x2 --mesh tensor=4",
    "infer plan --topology v6e:2x2 --mesh tensor=4 --phases",
    "infer plan --topology v6e:2x2 --mesh data=1 --phases",  # one chip
    "infer plan --topology v5e:2x4",
    "train plan --topology v5e:16x16 --resolution 512 --batch 256",
    "train plan --topology v5e:16x16 --resolution 1024 --batch 256",
    "train plan --topology v6e:4x4 --resolution 512 --batch 32",
    "train plan --topology v6e:4x4 --resolution 1024 --batch 32",
    "train plan --topology v5p:4x4x4 --resolution 512 --batch 64",
    "train plan --topology v5p:4x4x4 --resolution 1024 --batch 64",
    "train plan --topology v5p:4x4x4 --resolution 512 --batch 64 --remat dots",
    "train plan --topology v5p:4x4x4 --resolution 512 --batch 64 --remat none",
)
RESULTS = Path(__file__).with_suffix(".json")


def main() -> None:
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    where = origin("jax", "flax", "libtpu")
    for command in PLANS:
        if found.get(command, {}).get("commit") == where["commit"]:
            continue
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "plan.json"
            run = [sys.executable, "-m", *command.split(), "--json", str(file)]
            if subprocess.run(run, check=False).returncode == 0:
                found[command] = {"plans": json.loads(file.read_text()), **where}
                RESULTS.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
