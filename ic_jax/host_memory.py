"""Memory of the machine, or of the container, that a process can still take."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

CGROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# Files of a cgroup, of version 2 and of version 1: the limit, what is used, and what of that is
# cached files, which the system gives back.
VERSIONS = (
    ("memory.max", "memory.current", ("active_file", "inactive_file")),
    (
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        ("total_active_file", "total_inactive_file"),
    ),
)


def free_host_memory() -> float | None:
    """Return the bytes that this process can still take, swap included; None if not known."""
    with suppress(OSError, KeyError, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
        free = 1024 * (kilobytes["MemAvailable"] + kilobytes["SwapFree"])
        return min(free, free_of_container())
    return None


def free_of_container(root: Path = CGROUPS, membership: Path = MEMBERSHIP) -> float:
    """Return what the limits of this process's cgroups leave; infinity without one.

    A job of Slurm or systemd has its limit in a group of its own, a container in the root.
    """
    return min(_left(group, *files) for group in _groups(root, membership) for files in VERSIONS)


def _groups(root: Path, membership: Path) -> Iterator[Path]:
    """Yield the folders of the groups that hold this process, of both versions."""
    yield from (root, root / "memory")
    with suppress(OSError, ValueError):
        for line in membership.read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            group = (root / "memory" if controllers else root) / name.strip("/")
            yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(root))


def _left(group: Path, limit: str, usage: str, cached: tuple[str, ...]) -> float:
    with suppress(OSError, KeyError, ValueError):
        lines = (group / "memory.stat").read_text().splitlines()
        stat = {name: int(value) for name, value in map(str.split, lines)}
        used = int((group / usage).read_text()) - sum(stat[name] for name in cached)
        return int((group / limit).read_text()) - used  # "max" is no limit
    return float("inf")
