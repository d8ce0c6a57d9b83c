"""Recipe of a training run: a TOML file with a table per stage; every default names its source.

Sources of defaults: [paper] InstantCharacter, arXiv 2504.12395, section on training; [WithAnyone]
the most similar open project, an image-prompt adapter on FLUX; [UNO], [EasyControl], [x-flux] the
code of other open adapters; [flux] black-forest-labs/flux; [small model] measured on the small
model, examples/open_peeps/NOTES.md; [ours] a choice of this project.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

from ic_jax.config import ConfigError
from ic_jax.from_dict import (
    dataclass_from_dict,
    nearest,
    parse_change,
    refuse_unknown,
    shown,
)
from ic_jax.models.layers import Remat
from ic_jax.text_files import read_text
from ic_jax.weights.lora.pairs import MAX_RANK
from train import limits
from train.limits import check, check_range
from train.optimizer_settings import SCHEDULES, OptimizerName, check_optimizer

TIMESTEPS = ("logit-normal", "uniform")
# The attention's projections, which peft changes in FLUX by default.
ATTENTION = (
    *("to_q", "to_k", "to_v", "to_out.0"),
    *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
)

BASES = ("auto", "replicated", "sharded")
OLD_BASES = {"whole": "replicated", "pieces": "sharded"}  # names in earlier versions
DTYPES = ("bfloat16", "float32")


@dataclass(frozen=True)
class Stage:
    """Settings of one stage; the stages of a recipe follow each other."""

    steps: int  # optimiser steps
    batch: int = 32  # samples of an optimiser step, over all devices [x-flux: 32 to 48]
    resolution: int = 512  # pixels; buckets have about its square as area [paper: 512, then high]
    subjects: int = 1  # most characters of a picture, with a reference and region each [ours]
    paired: float = 0.0  # fraction with another picture as reference [paper: 0, 1, mixed]
    learning_rate: float = 1e-4  # [WithAnyone, OminiControl, EasyControl]
    warmup: int = 100  # steps [WithAnyone]
    schedule: str = "constant"  # after it; or "linear", "cosine", "wsd" (train/schedule.py) [ours]
    floor: float = 0.0  # fraction of the learning rate to which a schedule falls [ours]
    decay: float = 0.2  # fraction of the steps in which "wsd" falls [arXiv 2405.18392]
    b1: float = 0.9  # Adam's [all]
    b2: float = 0.999  # [all]
    weight_decay: float = 0.0  # [WithAnyone]
    clip: float = 1.0  # global gradient norm [WithAnyone, UNO, x-flux]
    accumulate: int = 1  # parts in which a batch is computed [ours]
    timesteps: str = "logit-normal"  # or "uniform" [flux; OminiControl]
    shifted: bool = True  # noise levels, as FLUX's schedule for the size [WithAnyone, UNO]
    guidance: float = 1.0  # scale for FLUX's distilled guidance embedding [all]
    text_dropout: float = 0.1  # probability of the empty prompt [WithAnyone, UNO, OminiControl]
    early_text_dropout: float = 0.0  # at first [WithAnyone: 1.0 for 20 000]
    early_steps: int = 0  # steps with early_text_dropout in place of text_dropout [ours]
    subject_dropout: float = 0.05  # probability of subject scale 0 [x-flux]
    focus: float = 0.0  # fraction of the loss within the data's focus boxes, such as faces [ours]
    ema: float = 0.999  # decay of the averaged parameters; 0 is off [ours]
    remat: Remat = "blocks"  # recomputed in the backward pass; or "dots", "none" [ours]

    def __post_init__(self) -> None:
        check_range(self, "steps", 1, limits.MAX_STEPS)
        check_range(self, "batch", 1, limits.MAX_BATCH)
        divides = self.accumulate >= 1 and self.batch % self.accumulate == 0
        check(divides, "accumulate", self.accumulate, f"a divisor of batch {self.batch}")
        check_range(self, "resolution", 16, limits.MAX_RESOLUTION)
        check(self.resolution % 16 == 0, "resolution", self.resolution, "a multiple of 16")
        check_range(self, "subjects", 1, limits.MAX_SUBJECTS)
        check(0 < self.learning_rate <= 1e6, "learning_rate", self.learning_rate, "above 0")
        for name, choices in (
            ("timesteps", TIMESTEPS),
            ("schedule", SCHEDULES),
            ("remat", get_args(Remat)),
        ):
            value = getattr(self, name)
            check(value in choices, name, value, " or ".join(choices))
        for name in (
            "floor",
            "decay",
            "paired",
            "text_dropout",
            "early_text_dropout",
            "subject_dropout",
            "focus",
            "ema",
        ):
            check(0 <= getattr(self, name) <= 1, name, getattr(self, name), "from 0 to 1")
        for name in ("b1", "b2"):
            check(0 <= getattr(self, name) < 1, name, getattr(self, name), "from 0 to below 1")
        check(self.clip > 0, "clip", self.clip, "above 0")
        for name in ("warmup", "weight_decay", "early_steps", "guidance"):
            check_range(self, name, 0, limits.MAX_STEPS)


@dataclass(frozen=True)
class LoraConfig:
    """Settings of a style LoRA on the base, trained instead of the adapter."""

    rank: int = 16  # [ai-toolkit]
    alpha: float = 0.0  # its scale is alpha / rank; 0 takes the rank [ours]
    targets: tuple[str, ...] = ATTENTION  # suffixes of published module names, as in peft [ours]
    trigger: str = ""  # precedes every caption, as `--trigger` every prompt [ours]
    start: str = ""  # LoRA to go on with: a file, a folder or a Hub id [ours]

    def __post_init__(self) -> None:
        check_range(self, "rank", 1, MAX_RANK)
        check_range(self, "alpha", 0, 2**20)
        check(bool(self.targets), "targets", list(self.targets), "a list of module names")

    @property
    def scale(self) -> float:
        """Factor of B A: alpha / rank."""
        return (self.alpha or self.rank) / self.rank


@dataclass(frozen=True)
class Saving:
    """Settings of the checkpoints."""

    every: int = 500  # steps between checkpoints [ours]
    keep: int = 3  # number of newest checkpoints that stay [ours]
    keep_every: int = 0  # checkpoints at multiples of this stay, too; 0 is none [ours]

    def __post_init__(self) -> None:
        check(self.every >= 1, "every", self.every, "at least 1")
        check(self.keep >= 1, "keep", self.keep, "at least 1")
        check(self.keep_every >= 0, "keep_every", self.keep_every, "at least 0")


@dataclass(frozen=True)
class Reporting:
    """Settings of the metrics and previews."""

    every: int = 10  # steps between log lines [ours]
    effect_every: int = 250  # steps between measurements of the effect; 0 is none [ours]
    effect_batches: int = 4  # held-out batches in each [ours]
    preview_every: int = 500  # steps between contact sheets; 0 is none [ours]
    preview_prompts: tuple[str, ...] = ("",)  # columns of the contact sheet [ours]
    preview_references: int = 4  # held-out characters on the sheet [ours]
    preview_steps: int = 0  # sampling steps; 0 takes the model's own [ours]
    wandb: str = ""  # project name; empty is off [ours]

    def __post_init__(self) -> None:
        for name in ("every", "effect_batches"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("effect_every", "preview_every", "preview_references", "preview_steps"):
            check(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        check(bool(self.preview_prompts), "preview_prompts", [], "a list of prompts")


@dataclass(frozen=True)
class Recipe:
    """Settings of a training run."""

    model: Path  # MODEL folder: the frozen base, and the adapter to start from if it has one
    data: Path  # DATASET folder
    out: Path  # RUN folder
    stages: Mapping[str, Stage]
    seed: int = 0  # of the first weights, the order of the data and the noise [ours]
    adapter: str | Mapping[str, Any] = ""  # sizes of a new one; empty continues the model's [ours]
    lora: LoraConfig | None = None  # trained instead of the adapter [ours]
    cache: str = ""  # folder of `python -m train cache`; empty encodes within the step [ours]
    text_length: int = 512  # T5 tokens [flux]
    mesh: str = "auto"  # devices, such as "data=2,fsdp=4" (docs/sharding.md) [ours]
    base: str = "auto"  # the frozen base over the mesh: "replicated" or "sharded" [ours]
    dtype: str = "bfloat16"  # of the base and of the computation; masters are float32 [flux]
    optimizer: OptimizerName = "adamw"  # see train/optimizer.py [all]
    holdout: float = 0.02  # fraction of the characters held out of training, for measuring [ours]
    stop_after_bad: int = 10  # steps in a row whose loss or gradient is not finite [ours]
    saving: Saving = field(default_factory=Saving)
    reporting: Reporting = field(default_factory=Reporting)

    def __post_init__(self) -> None:
        if self.base in OLD_BASES:
            raise ConfigError(
                f"base {self.base!r} is now called {OLD_BASES[self.base]!r}; write that"
            )
        optimizers = get_args(OptimizerName)
        for name, choices in (("base", BASES), ("dtype", DTYPES), ("optimizer", optimizers)):
            value = getattr(self, name)
            check(value in choices, name, value, " or ".join(choices))
        check(0 <= self.holdout < 1, "holdout", self.holdout, "from 0 to below 1")
        check_range(self, "text_length", 1, limits.MAX_TEXT_LENGTH)
        check_range(self, "stop_after_bad", 1, limits.MAX_STEPS)
        check_range(self, "seed", 0, 2**32 - 1)

    @property
    def total_steps(self) -> int:
        """The number of steps of all stages."""
        return sum(stage.steps for stage in self.stages.values())

    @property
    def averages(self) -> bool:
        """True if a stage averages the parameters."""
        return any(stage.ema > 0 for stage in self.stages.values())

    def first_steps(self) -> dict[str, int]:
        """Return the global step at which each stage starts."""
        firsts, first = {}, 0
        for name, stage in self.stages.items():
            firsts[name] = first
            first += stage.steps
        return firsts

    @property
    def cache_folder(self) -> Path:
        """The folder of the cache; ConfigError if the recipe names none."""
        if not self.cache:
            raise ConfigError('cache is missing; write cache = "FOLDER"')
        return Path(self.cache).expanduser()

    @property
    def trigger(self) -> str:
        """The LoRA's trigger, or an empty string."""
        return self.lora.trigger if self.lora else ""

    def prompted(self, caption: str) -> str:
        """Return a caption prefixed with the trigger, as the pipeline prefixes prompts."""
        return ", ".join(filter(None, [self.trigger, caption]))

    def to_dict(self) -> dict[str, Any]:
        """Return the tables of the TOML file, which `recipe_of` reads back."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in TABLES}
        values |= {name: str(values[name]) for name in ("model", "data", "out")}
        tables: dict[str, Any] = {
            "saving": self.saving,
            "reporting": self.reporting,
            **({"lora": self.lora} if self.lora else {}),
            **self.stages,
        }
        return values | {name: asdict(table) for name, table in tables.items()}


TABLES = ("stages", "saving", "reporting", "lora")  # fields that are tables


def read_recipe(file: Path, changes: Sequence[str] = ()) -> Recipe:
    """Read a TOML recipe and apply changes such as "stage1.steps=2000".

    Raises:
        ConfigError: names the key, its value and what was expected.
    """
    try:
        values = tomllib.loads(read_text(file))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: not TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{file}: is nested too deep") from None
    except ValueError as error:
        raise ConfigError(str(error)) from None
    try:
        return recipe_of(changed(values, changes))
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


def changed(values: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """Apply changes such as "stage1.steps=2000" to a recipe's tables, in place; return them."""
    for change in changes:
        path, value = parse_change(change, "stage1.steps=2000")
        *tables, key = path.split(".")
        place = values
        for table in tables:
            place = place.setdefault(table, {})
            if not isinstance(place, dict):
                raise ConfigError(f"--set {change}: {table} is {place!r}, which has no {key}")
        place[key] = value
    return values


def recipe_of(values: dict[str, Any]) -> Recipe:
    """Return a recipe from its tables; ConfigError as `read_recipe`."""
    if not isinstance(values, dict):
        raise ConfigError(f"is {shown(values)}; a recipe is a table of settings")
    tables = ("saving", "reporting", "lora", "adapter")
    stages = {k: v for k, v in values.items() if isinstance(v, dict) and k not in tables}
    rest = {k: v for k, v in values.items() if k not in stages}
    for name in stages:
        if not re.fullmatch(r"stage\d+", name):
            raise ConfigError(f"unknown table [{name}]{nearest(name, [*tables, 'stage1'])}")
    if not stages:
        raise ConfigError("has no stage; write a table [stage1] with steps = 1000")
    refuse_unknown(rest, [f.name for f in fields(Recipe) if f.name != "stages"])
    for name in ("model", "data", "out"):
        if not isinstance(rest.get(name), str):
            raise ConfigError(f'{name} is missing; write {name} = "FOLDER"')
    rest["stages"] = {
        name: dataclass_from_dict(Stage, stages[name], f"{name}.")
        for name in sorted(stages, key=lambda name: int(name[5:]))
    }
    if "lora" in rest:
        rest.setdefault("holdout", 0.0)  # a LoRA is measured on no held-out characters
    recipe = dataclass_from_dict(Recipe, rest)
    check_optimizer(recipe.optimizer, recipe.stages)
    if recipe.lora:
        _check_lora(recipe)
    return recipe


def _check_lora(recipe: Recipe) -> None:
    if recipe.adapter:
        raise ConfigError("has both adapter and [lora]; a run trains one of them")
    for name, stage in recipe.stages.items():
        for key, value, wanted in (("paired", stage.paired, 0), ("subjects", stage.subjects, 1)):
            if value != wanted:
                raise ConfigError(
                    f"{name}.{key} is {value}; [lora] sees no reference, it must be {wanted}"
                )
