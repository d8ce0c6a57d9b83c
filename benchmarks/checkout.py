"""Commands of a checkout, each in a fresh process that is timed."""

import os
import subprocess
import sys
import time
from pathlib import Path


class Checkout:
    """A checkout with a folder and a compilation cache of its own.

    Attributes:
        root: folder of the checkout.
        folder: for what its commands write.
        log: file with what its last command said.
    """

    def __init__(self, root: Path, folder: Path):
        self.root, self.folder, self.log = root, folder, folder / "log"
        folder.mkdir()
        # Both checkouts may be installed as ic_jax; the folder that they run in comes first.
        self.environment = os.environ | {"XDG_CACHE_HOME": str(folder), "PYTHONPATH": str(root)}
        self.environment.pop("JAX_COMPILATION_CACHE_DIR", None)

    def python(self, *arguments: str | Path) -> subprocess.Popen[bytes]:
        """Start Python with these arguments in the checkout."""
        run = [sys.executable, *map(str, arguments)]
        with self.log.open("wb") as log:
            return subprocess.Popen(
                run, cwd=self.root, env=self.environment, stdout=log, stderr=subprocess.STDOUT
            )

    def timed(self, *arguments: str | Path) -> tuple[float, float]:
        """Run Python to its end; return seconds of wall and of processor time."""
        start = time.perf_counter()
        process = self.python(*arguments)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said = self.log.read_text(errors="replace")
            sys.exit(f"error: {arguments} of {self.root} ended with {process.returncode}:\n{said}")
        return wall, usage.ru_utime + usage.ru_stime
