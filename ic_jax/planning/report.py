"""Report of a compiled program: memory, work and time on each device, as JSON and for people."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from ic_jax.cli import say
from ic_jax.devices import Chip
from ic_jax.files import write_json
from ic_jax.planning.hlo_collectives import Collective
from ic_jax.planning.hlo_cost import Work
from ic_jax.sharding import describe


@dataclass(frozen=True)
class CompileReport:
    """Requirements of one compiled program on each device."""

    name: str
    mesh: Mesh
    arguments: dict[str, int]  # bytes by label
    temporary: int | None  # bytes beside them; None where the compiler does not say
    needed: int  # bytes in all
    memory: float | None  # bytes that the device has
    work: Work | None  # None if the program is too large to be compiled
    seconds_to_compile: float

    @property
    def fits(self) -> bool | None:
        return None if self.memory is None else self.needed <= self.memory

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        device = self.mesh.devices.flat[0]
        values: dict[str, Any] = {
            "program": self.name,
            "device": device.device_kind,
            "devices": int(self.mesh.devices.size),
            "mesh": describe(self.mesh),
            "fits": self.fits,
            "bytes per device": {
                **self.arguments,
                "temporaries, results and code": self.temporary,
                "needed": self.needed,
                "memory": self.memory,
            },
            "seconds to compile": round(self.seconds_to_compile, 1),
        }
        if self.work is not None:
            values |= _work_to_dict(self.work)
            if chip := Chip.of(device):
                values["seconds at least"] = _rounded(seconds_at_least(self.work, chip))
                if estimate := seconds_by_the_compiler(self.work, chip):
                    values["seconds by the compiler"] = _rounded(estimate)
        return values


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {kind: round(value, 4) for kind, value in seconds.items()}


def _work_to_dict(work: Work) -> dict[str, Any]:
    collectives: dict[str, dict[str, float]] = {}
    for c in work.collectives:
        entry = collectives.setdefault(c.kind, {"count": 0, "bytes sent": 0, "largest": 0})
        entry["count"] += c.count
        entry["bytes sent"] += round(c.sent)
        entry["largest"] = max(entry["largest"], c.bytes)
    return {
        "TFLOP per device": round(work.flops / 1e12, 3),
        "bytes moved per device": round(work.bytes),
        "of which copies of weights": round(work.weight_copies),
        "kernels": work.kernels,
        "collectives": collectives,
    }


def seconds_at_least(work: Work, chip: Chip) -> dict[str, float]:
    """Return the least seconds that each kind of work takes, and all of them if they overlap."""

    def communication(c: Collective) -> float:
        between_machines = c.sent_to_other_machines / chip.network if chip.network else 0.0
        return max(c.sent / chip.links, between_machines)

    seconds = {
        "arithmetic": work.flops / chip.flops,
        "memory": work.bytes / chip.bandwidth,
        "communication": sum(map(communication, work.collectives)),
    }
    return seconds | {"overlapped": max(seconds.values())}


def seconds_by_the_compiler(work: Work, chip: Chip) -> dict[str, float]:
    """Return the TPU compiler's own estimate of each kind of kernel; {} if it made none.

    It does not estimate attention kernels, which count as if they ran at the chip's peak.
    """
    if not (chip.clock and work.cycles.products + work.cycles.others):
        return {}
    seconds = {
        "products": work.cycles.products / chip.clock,
        "other kernels": work.cycles.others / chip.clock,
        "attention, at peak": work.attention_flops / chip.flops,
    }
    return seconds | {"in all": sum(seconds.values())}


def show(reports: Sequence[Mapping[str, Any]], file: Path | None) -> None:
    """Print reports (of `CompileReport.to_dict`), and also write them as JSON to `file`."""
    for report in reports:
        _show(report)
    if file is not None:
        write_json(file, list(reports))


def _show(report: Mapping[str, Any]) -> None:
    sizes = dict(report["bytes per device"])
    needed, memory = sizes.pop("needed"), sizes.pop("memory")
    verdict = {True: "fits", False: "does not fit", None: "memory unknown"}[report["fits"]]
    devices = f"{report['devices']} x {report['device']}"
    say(f"{report['program']}: {devices}, mesh {report['mesh']}: {verdict}")
    for label, size in sizes.items():
        say(f"  {label:32} {'?' if size is None else f'{size / 1e9:8.2f}'} GB")
    of = "" if memory is None else f" of {memory / 1e9:.2f}"
    say(f"  {'needed':32} {needed / 1e9:8.2f}{of} GB a device")
    if "TFLOP per device" in report:
        say(f"  {'arithmetic':32} {report['TFLOP per device']:8.2f} TFLOP")
        for label in ("bytes moved per device", "of which copies of weights"):
            say(f"  {label.removeprefix('bytes '):32} {report[label] / 1e9:8.2f} GB")
    for kind, work in report.get("collectives", {}).items():
        say(f"  {kind:32} {work['bytes sent'] / 1e9:8.2f} GB sent in {work['count']}")
    for kind, seconds in report.get("seconds at least", {}).items():
        say(f"  {kind:32} {seconds:8.3f} s at least")
    for kind, seconds in report.get("seconds by the compiler", {}).items():
        say(f"  {kind:32} {seconds:8.3f} s by the compiler")
    if report.get("suggestion"):
        say(f"  {report['suggestion']}")
