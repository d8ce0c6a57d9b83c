"""`python -m infer env`: versions, devices and caches, for a report of an issue.

Folders begin with ~ where they are the user's; no name of a user or a machine is told, and no value
of an environment variable that may hold a secret.
"""

import argparse
import json
import os
import platform
import re
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from ic_jax import compilation_cache
from ic_jax.host_memory import free_host_memory
from ic_jax.measuring.origin import origin
from ic_jax.version import __version__

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "pillow", "tokenizers", "huggingface_hub")
# Packages that hold a device's compiler and kernels, and what makes JAX find them.
PLUGINS = re.compile(r"(jax[-_].*(plugin|pjrt)|libtpu|nvidia[-_](cudnn|cuda[-_]nvcc|nccl|cublas))")
ACCELERATORS = ("tpu", "cuda12", "cuda13")  # extras that are plugins
VARIABLES = ("JAX_", "XLA_", "LIBTPU_", "CUDA_VISIBLE_", "HF_HUB_OFFLINE", "HF_HUB_CACHE")
NOT_TOLD = ("ADDRESS", "TOKEN", "KEY", "SECRET", "PASSWORD")
REQUIREMENT = re.compile(r"([\w.-]+).*extra == ['\"]([\w-]+)['\"]")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `env`."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """Print the environment."""
    told = environment()
    print(json.dumps(told, indent=1) if args.json else "\n".join(_lines(told)))


def environment() -> dict[str, Any]:
    """Return what an issue's reader asks for, as JSON values."""
    from huggingface_hub import constants

    known = origin(*PACKAGES)
    installed = {dist.metadata["Name"]: dist.version for dist in metadata.distributions()}
    plugins = {name: installed[name] for name in sorted(installed) if PLUGINS.match(name.lower())}
    told = {
        "ic_jax": f"{__version__} {known['commit']}".strip(),
        "system": {"os": platform.platform(), "machine": known["machine"]} | _memory(),
        "versions": known["versions"],
        "plugins": plugins or None,
        "devices": _devices(),
        "extras": _extras(),
        "caches": {
            "compiled programs": _folder(_compiled()),
            "Hugging Face Hub": _folder(Path(constants.HF_HUB_CACHE)),
        },
        "variables": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(VARIABLES) and not any(word in name for word in NOT_TOLD)
        }
        or None,
    }
    return _without_user(told)


def _memory() -> dict[str, str]:
    free = free_host_memory()
    return {} if free is None else {"free memory": _size(free)}


def _devices() -> Any:
    """Return the devices, their memory and their compiler; the error where JAX finds none."""
    try:
        devices = jax.local_devices()
    except RuntimeError as error:  # such as a TPU that another process holds
        return {"error": " ".join(str(error).split())}
    kinds: dict[str, Any] = {"backend": jax.default_backend(), "count": jax.device_count()}
    for device in devices:
        kinds[str(device.id)] = " ".join([device.device_kind, *_device_memory(device)])
    kinds["compiler"] = " ".join(str(devices[0].client.platform_version).split())
    return kinds


def _device_memory(device: Any) -> Iterator[str]:
    with suppress(jax.errors.JaxRuntimeError):
        stats = device.memory_stats() or {}
        if "bytes_limit" in stats:
            yield f"{_size(stats['bytes_in_use'])} of {_size(stats['bytes_limit'])} in use"


def _extras() -> dict[str, str] | str:
    """Return for each extra "complete", or what it lacks."""
    try:
        requirements = metadata.requires("ic-jax") or []
    except metadata.PackageNotFoundError:
        return "ic_jax is not installed"
    lacking: dict[str, list[str]] = {}
    for package, extra in filter(None, map(_of_extra, requirements)):
        missing = lacking.setdefault(extra, [])
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            missing.append(package)
    return {
        extra: f"lacks {', '.join(missing)}" if missing else "complete"
        for extra, missing in sorted(lacking.items())
    }


def _of_extra(requirement: str) -> tuple[str, str] | None:
    match = REQUIREMENT.match(requirement)
    if match is None or match[2] in ACCELERATORS or match[1].replace("_", "-") == "ic-jax":
        return None
    return match[1], match[2]


def _compiled() -> Path | None:
    set_by_user = jax.config.values["jax_compilation_cache_dir"]
    with suppress(RuntimeError):  # the user has no home directory
        return Path(set_by_user) if set_by_user else compilation_cache.default_folder()
    return None


def _folder(folder: Path | None) -> str:
    """Return a folder and its size, without following links out of it."""
    if folder is None or not folder.is_dir():
        return f"{folder}: not there"
    size = count = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                state = os.lstat(os.path.join(parent, name))
                size, count = size + state.st_size, count + 1
    return f"{folder}: {count} files, {_size(size)}"


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _without_user(value: Any) -> Any:
    """Replace the home folder by ~, and its user's name wherever it is part of a path."""
    if isinstance(value, dict):
        return {name: _without_user(x) for name, x in value.items()}
    home = os.path.expanduser("~").rstrip("/")
    name = os.path.basename(home)
    if not isinstance(value, str) or not name:
        return value
    part = rf"(?<=[/_.-]){re.escape(name)}(?=[/_.-]|$)"
    return re.sub(part, "USER", value.replace(home, "~"))


def _lines(value: dict[str, Any], indent: str = "") -> Iterator[str]:
    for name, x in value.items():
        if isinstance(x, dict):
            yield f"{indent}{name}:"
            yield from _lines(x, indent + "  ")
        else:
            yield f"{indent}{name}: {'none' if x is None else x}"
