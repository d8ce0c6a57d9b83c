"""Settings of a data set; they import nothing that only the train extra installs."""

from dataclasses import dataclass

from train.data.buckets import buckets
from train.data.sources.entries import USUAL, SourceOptions


@dataclass(frozen=True)
class PrepareOptions:
    """Settings of a data set."""

    resolutions: tuple[int, ...] = (512, 1024)  # of the paper's stages 1 and 2, and of stage 3
    shard_size: int = 512  # pictures; about 100 MB, as tensorflow-datasets advises
    max_bad: float = 0.05  # share of pictures that may be rejected
    min_side: int = 0  # pixels; pictures with a shorter side are left out
    source: SourceOptions = USUAL
    caption: str = ""  # command that prints the caption of a picture
    mask: str = ""  # command that makes the mask of a picture

    def __post_init__(self) -> None:
        for resolution in self.resolutions:
            buckets(resolution)
        if self.shard_size < 1:
            raise ValueError(f"--shard-size {self.shard_size} is not a positive number")
        if not 0 <= self.max_bad <= 1:
            raise ValueError(f"--max-bad {self.max_bad:g} is not a share from 0 to 1")
        if self.min_side < 0:
            raise ValueError(f"--min-side {self.min_side} is not a number of pixels")


DEFAULTS = PrepareOptions()
