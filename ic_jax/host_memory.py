"""Memory of the machine, or of the container, that a process can still take."""

from contextlib import suppress
from pathlib import Path


def free_host_memory() -> float | None:
    """Return the bytes that this process can still take, swap included; None if not known."""
    with suppress(OSError, KeyError, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
        free = 1024 * (kilobytes["MemAvailable"] + kilobytes["SwapFree"])
        return min(free, free_of_container())
    return None


def free_of_container(folder: Path = Path("/sys/fs/cgroup")) -> float:
    """Return what the limit of a container leaves, by cgroup version 2; infinity without one."""
    with suppress(OSError, KeyError, ValueError):
        lines = (folder / "memory.stat").read_text().splitlines()
        stat = {name: int(value) for name, value in map(str.split, lines)}
        cached = stat["active_file"] + stat["inactive_file"]
        used = int((folder / "memory.current").read_text()) - cached
        return int((folder / "memory.max").read_text()) - used  # "max" is no limit
    return float("inf")
