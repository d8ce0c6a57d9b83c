"""Really full and really read-only disks: small tmpfs where root, limits and modes elsewhere."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PAGE = 4096  # bytes, what tmpfs counts in


class Disk:
    """A file system of its own at a folder."""

    def __init__(self, folder: Path):
        """Describe the one that is mounted there."""
        self.folder = folder
        self._filler = folder / "filler"

    def resize(self, size: int) -> None:
        """Give it another size, in bytes."""
        self._remount(f"size={max(PAGE, size)}")

    def lock(self, *, read_only: bool) -> None:
        """Make it read-only, or writable again."""
        self._remount("ro" if read_only else "rw")

    def fill(self) -> None:
        """Take all that is free, as another program would."""
        with self._filler.open("wb", buffering=0) as file:
            for block in (256 * PAGE, PAGE):
                with suppress(OSError):
                    while True:  # until none is left, whatever others take meanwhile
                        file.write(bytes(block))

    def make_room(self) -> None:
        """Remove what `fill` wrote."""
        self._filler.unlink(missing_ok=True)

    def _remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", self.folder], check=True)


def can_mount() -> bool:
    """Return whether this user may mount a tmpfs."""
    return os.geteuid() == 0 and shutil.which("mount") is not None


@contextmanager
def mounted(folder: Path, size: int) -> Iterator[Disk]:
    """Mount a tmpfs of so many bytes at a folder."""
    options = f"size={max(PAGE, size)},mode=0755"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "faults", folder], check=True)
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
