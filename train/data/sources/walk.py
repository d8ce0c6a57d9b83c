"""Every file of a folder: what may be read, and what is set aside with a reason."""

import os
from collections.abc import Iterator
from pathlib import Path

from train.data.sources.entries import SetAside

# What programs leave in folders of pictures.
SYSTEM_FILES = frozenset({"Thumbs.db", "desktop.ini", "Icon\r"})
HIDDEN_FOLDERS = frozenset({"__MACOSX", "@eaDir"})
ARCHIVES = (".gz", ".tgz", ".zst", ".xz", ".bz2", ".zip", ".7z", ".rar")


def walk(root: Path, *, follow_links: bool) -> Iterator[str | SetAside]:
    """Yield every file below a folder, relative to it, or `SetAside` with why it is not read.

    Links are followed to what lies in the folder, to a file that the Hub's cache keeps for it, and
    with `follow_links` to anywhere. Each folder is read once, whatever links lead to it.
    """
    inside, seen = boundary(root), {root.resolve()}
    # With the reason why all files of a folder are set aside.
    folders: list[tuple[Path, str]] = [(root, "")]
    links: list[tuple[Path, str]] = []
    while folders or links:
        folder, reason = folders.pop() if folders else links.pop(0)
        if folder.is_symlink() and Path(os.path.realpath(folder)) in seen and folder != root:
            yield SetAside(_name(folder, root), "is a link to a folder that is read already")
            continue
        seen.add(Path(os.path.realpath(folder)))
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            yield SetAside(_name(folder, root), f"cannot be read ({error.strerror})")
            continue
        for entry in entries:
            path = Path(entry.path)
            target = os.path.realpath(path) if entry.is_symlink() else ""
            outside = bool(target) and not Path(target).is_relative_to(inside)
            is_folder = path.is_dir()  # of a link that leads to itself, False
            why = reason or _unwanted(entry.name, is_folder)
            if outside and not follow_links:
                why = "is a link that leads out of the source; give --follow-links to read it"
            elif is_folder:
                (links if entry.is_symlink() else folders).append((path, why))
                continue
            elif not path.is_file():
                why = "is no regular file, or a link to nothing"
            name = _name(path, root)
            yield SetAside(name, why) if why else name


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _unwanted(name: str, is_folder: bool) -> str:
    """Return why a file, or all in a folder, is not read; "" where it is."""
    if is_folder:
        hidden = name.startswith(".") or name in HIDDEN_FOLDERS
        return "is in a hidden folder" if hidden else ""
    if name.startswith("._"):
        return "is what macOS notes of a file"
    if name.startswith(".") or name in SYSTEM_FILES:
        return "is a hidden file or a system's"
    if name.lower().endswith(ARCHIVES):
        return "is compressed; unpack it"
    if Path(name).stem.endswith("-masklabel"):
        return "is a mask of OneTrainer; to use it, name it as mask in a metadata.jsonl"
    return ""


def boundary(root: Path) -> Path:
    """Return the folder that links may not leave: the source, or its repository in the Hub's cache.

    There, datasets--ORG--NAME/snapshots/COMMIT holds links to datasets--ORG--NAME/blobs.
    """
    resolved = root.resolve()
    parents = resolved.parents
    if len(parents) > 1 and parents[0].name == "snapshots":
        return parents[1] if parents[1].name.startswith("datasets--") else resolved
    return resolved
