"""Settings of a data set; they import nothing that only the train extra installs."""

from dataclasses import dataclass

from train.data.buckets import buckets


@dataclass(frozen=True)
class PrepareOptions:
    """Settings of a data set."""

    resolutions: tuple[int, ...] = (512, 1024)  # of the paper's stages 1 and 2, and of stage 3
    shard_size: int = 512  # pictures; about 100 MB, as tensorflow-datasets advises
    max_bad: float = 0.05  # share of pictures that may be rejected

    def __post_init__(self) -> None:
        for resolution in self.resolutions:
            buckets(resolution)
        if self.shard_size < 1:
            raise ValueError(f"--shard-size {self.shard_size} is not a positive number")
        if not 0 <= self.max_bad <= 1:
            raise ValueError(f"--max-bad {self.max_bad:g} is not a share from 0 to 1")


DEFAULTS = PrepareOptions()
