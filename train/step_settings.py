"""Settings of a stage as arguments of the training step: compiled in, or numbers."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from train.averages import decay
from train.optimizer import optimizer
from train.optimizer_settings import OptimizerName
from train.recipe import Stage
from train.schedule import learning_rate


def static_arguments(stage: Stage, name: OptimizerName, dtype: str) -> dict[str, Any]:
    """Return the arguments of `train.step.train_step` that are compiled in."""
    return {
        "optimizer": optimizer(name, stage),
        "timesteps": stage.timesteps,
        "accumulate": stage.accumulate,
        "remat": stage.remat,
        "dtype": jnp.dtype(dtype),
    }


def numbers(
    stage: Stage, step_in_stage: int, shift: float, averaged: int = 0
) -> dict[str, np.float32]:
    """Return the fields of `train.encode.StepScalars` for a step of a stage.

    Args:
        stage: the stage.
        step_in_stage: counted from 0.
        shift: of noise levels, as FLUX's schedule has it for the size of the pictures.
        averaged: steps that the average has taken in before the stage.
    """
    early = step_in_stage < stage.early_steps
    values = {
        "learning_rate": learning_rate(stage, step_in_stage),
        "shift": shift if stage.shifted else 1.0,
        "guidance": stage.guidance,
        "text_dropout": stage.early_text_dropout if early else stage.text_dropout,
        "subject_dropout": stage.subject_dropout,
        "ema": decay(stage.ema, averaged + step_in_stage),
        "focus": stage.focus,
    }
    return {name: np.float32(value) for name, value in values.items()}
