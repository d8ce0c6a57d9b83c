"""Low-rank changes of linear maps, as they are read, applied and written."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class LoraDelta:
    """Change of one linear map: scale * b @ a, with a [rank, in] and b [out, rank].

    `bias` [out], where there is one, is added to the output, times the scale.
    """

    a: np.ndarray
    b: np.ndarray
    scale: float
    bias: np.ndarray | None = None

    @property
    def inputs(self) -> int:
        return self.a.shape[1]

    @property
    def outputs(self) -> int:
        return self.b.shape[0]


@dataclass(frozen=True)
class LoraFile:
    """Contents of a LoRA file.

    Attributes:
        changes: by component and published name of the linear map.
        layout: as people know it.
        passed_over: what is in the file and not applied, with the number of its keys.
    """

    name: str
    changes: Mapping[tuple[str, str], LoraDelta]
    weight: float = 1.0
    trigger: str | None = None
    layout: str = "peft"
    passed_over: Mapping[str, int] = field(default_factory=dict)
