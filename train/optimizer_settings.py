"""Names of the optimisers and of the learning rate's schedules, and which go together."""

from collections.abc import Mapping
from typing import Literal, Protocol

from ic_jax.config import ConfigError

OptimizerName = Literal["adamw", "adamw-bfloat16", "adafactor", "prodigy", "schedule-free"]
LEANER: tuple[OptimizerName, ...] = ("adamw-bfloat16", "adafactor")  # of less state than AdamW
SCHEDULES = ("constant", "linear", "cosine", "wsd")
LEAST_FACTOR = 0.01  # of Prodigy's own rate; below, it is a rate meant for another optimiser


class StageRates(Protocol):
    """Settings of a stage that an optimiser can be at odds with."""

    @property
    def learning_rate(self) -> float: ...
    @property
    def schedule(self) -> str: ...
    @property
    def b1(self) -> float: ...
    @property
    def ema(self) -> float: ...


def check_optimizer(name: OptimizerName, stages: Mapping[str, StageRates]) -> None:
    """Raise ConfigError where a stage's settings do not go with the optimiser."""
    for stage, settings in stages.items():
        if name == "prodigy" and settings.learning_rate < LEAST_FACTOR:
            raise ConfigError(
                f"{stage}.learning_rate is {settings.learning_rate}; optimizer 'prodigy' finds "
                "the rate itself and multiplies it by this: write 1.0"
            )
        if name == "schedule-free":
            _check_schedule_free(stage, settings, next(iter(stages.values())).b1)


def _check_schedule_free(stage: str, settings: StageRates, first_b1: float) -> None:
    if settings.ema:
        raise ConfigError(
            f"{stage}.ema is {settings.ema}; optimizer 'schedule-free' averages the parameters "
            "itself: write ema = 0"
        )
    if settings.schedule != "constant":
        raise ConfigError(
            f"{stage}.schedule is {settings.schedule!r}; optimizer 'schedule-free' takes the "
            "place of a schedule: leave it out"
        )
    if settings.b1 <= 0 or settings.b1 != first_b1:
        raise ConfigError(
            f"{stage}.b1 is {settings.b1}; optimizer 'schedule-free' divides by it, and its state "
            "is of one b1: write the same in all stages, above 0"
        )
