"""A reader of files that others wrote, with small valid files to damage."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz.edits import Form

ROOT = Path(__file__).parent.parent.parent
TOY = ROOT / "tests" / "goldens" / "toy_model"


@dataclass(frozen=True)
class Reader:
    """A reader, and the files that it is given.

    Attributes:
        write: writes valid files into an empty folder.
        read: reads that folder.
        forms: by pattern of name, of files whose values are damaged as well as their bytes.
        kept: names of files that are not damaged.
        megabytes: of memory that reading may take.
    """

    write: Callable[[Path], Any]
    read: Callable[[Path], Any]
    forms: Mapping[str, Form] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    megabytes: int = 64
