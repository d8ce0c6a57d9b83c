"""Sizes of a run: steps, batch, resolution and rates for a data set, a model and devices."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ic_jax.config import CONFIGS, AdapterConfig, FluxConfig, SamplingConfig
from ic_jax.weights import loading
from ic_jax.weights.model_folder import SMALL_MODEL, ModelFolder
from train.data.characters import pictures_alone
from train.data.dataset import Dataset
from train.new.memory_fit import Devices

PIXELS = 16  # sides are multiples of this
# What each stage sees every picture so often, between the least and the most steps. The most are
# those of docs/training.md for a batch of 32; the paper gives none.
PASSES = {"stage1": (30, 100, 20000), "stage2": (14, 50, 10000), "stage3": (10, 50, 2000)}
LORA_PASSES = (100, 200, 2000)
BASE_RESOLUTION = 512  # of stages 1 and 2 [paper]
COMMON = 0.1  # of the pictures show as many characters as a step has references for
NARROW = 1024  # width of FLUX below which the small model's measured values are taken
MEASURED = "[small model]"


@dataclass
class Draft:
    """Values of a recipe that is being written, and the reasons for them, by path."""

    values: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def put(self, path: str, value: Any, reason: str = "") -> None:
        """Set a key such as "stage1.steps"."""
        *tables, key = path.split(".")
        place = self.values
        for table in tables:
            place = place.setdefault(table, {})
        place[key] = value
        if reason:
            self.reasons[path] = reason


def draft(
    dataset: Dataset, model: ModelFolder, out: Path, devices: Devices, *, lora: bool, new: bool
) -> Draft:
    """Return the recipe for a data set and a model, before it is fitted to the devices' memory.

    Args:
        out: RUN folder.
        devices: of which the kind and the number matter here.
        lora: train a style LoRA instead of the adapter.
        new: start with a new adapter even if the model has one.
    """
    made = Draft()
    for key, folder in (("model", model.path), ("data", dataset.path), ("out", out)):
        near = folder.is_absolute() and folder.is_relative_to(Path.cwd())
        made.put(key, str(folder.relative_to(Path.cwd()) if near else folder))
    sampling = _sampling(model)
    flux = loading.read_config(model, "transformer")
    made.put("text_length", sampling.max_sequence_length, "as the model draws")
    if devices.is_cpu:
        made.put("dtype", "float32", "a CPU computes it faster than bfloat16")
    paired = False
    if lora:
        made.put("lora.rank", 16)
    else:
        held_out = _holdout(made, dataset)
        paired = dataset.card["characters_with_pairs"] > held_out
        _adapter(made, model, flux, new=new)
    _stages(made, dataset, sampling, devices, lora=lora, paired=paired)
    _rates(made, flux, continues="adapter" not in made.values and not lora)
    _reports(made, dataset, sampling)
    return made


def resolutions(model: ModelFolder) -> tuple[int, ...]:
    """Return the resolutions that a data set for a model should be prepared for."""
    side = _sampling(model).height
    return (side,) if side <= BASE_RESOLUTION else (BASE_RESOLUTION, side)


def _sampling(model: ModelFolder) -> SamplingConfig:
    """Return a model's sampling settings, by default the published ones."""
    if "sampling" not in model.components:
        return SamplingConfig()
    return loading.read_config(model, "sampling")


def _holdout(made: Draft, dataset: Dataset) -> int:
    """Hold out a fifth of few characters, down to a fiftieth of many; return how many."""
    shares = np.sort(dataset.character_hash[pictures_alone(dataset) > 0] / 2.0**64)
    count = len(shares)
    wanted = max(2, min(count // 5, 20), count // 50)
    if count < 2 * wanted:
        made.put("holdout", 0.0, f"too few to hold out: {count} characters")
        return 0
    middle = float(shares[wanted - 1] + shares[wanted]) / 2
    made.put("holdout", round(middle, 6), f"{wanted} of {count} characters, chosen by a hash")
    return wanted


def _adapter(made: Draft, model: ModelFolder, flux: FluxConfig, *, new: bool) -> None:
    own = "adapter" in model.components
    if own and not new:
        made.reasons["adapter"] = "the model's adapter is trained further"
        return
    sizes = loading.read_config(model, "adapter") if own else adapter_for(model, flux)
    made.put("adapter", {k: v for k, v in sizes.to_dict().items() if v is not None})
    made.reasons["adapter"] = "A new adapter, " + (
        "of the sizes of the model's own." if own else "of sizes that fit the model."
    )


def adapter_for(model: ModelFolder, flux: FluxConfig) -> AdapterConfig:
    """Return the sizes of an adapter for a model that has none.

    They are the published ones, or the small model's for a narrow FLUX, with the widths and the
    layers that this model's encoders have.
    """
    usual: Any = CONFIGS["instantcharacter"]
    if flux.hidden_size < NARROW:
        usual = loading.read_config(ModelFolder.open(SMALL_MODEL), "adapter")
    siglip, dinov2 = (loading.read_config(model, name) for name in ("siglip", "dinov2"))
    width = siglip.hidden_size + dinov2.hidden_size
    heads = next(n for n in range(usual.num_attention_heads, 0, -1) if width % n == 0)
    return replace(
        usual,
        inner_dim=width,
        cross_attention_dim=width,
        embedding_dim=width,
        num_attention_heads=heads,
        attention_head_dim=width // heads,
        siglip_layers=tuple(min(n, siglip.num_hidden_layers - 1) for n in usual.siglip_layers),
        dinov2_layers=tuple(min(n, dinov2.num_hidden_layers - 1) for n in usual.dinov2_layers),
    )


def _stages(
    made: Draft,
    dataset: Dataset,
    sampling: SamplingConfig,
    devices: Devices,
    *,
    lora: bool,
    paired: bool,
) -> None:
    card = dataset.card
    side = int(card["side"]["median"])
    resolution = _multiple(min(BASE_RESOLUTION, sampling.height, max(side, PIXELS)))
    high = _multiple(min(sampling.height, side, max(card["prepared_for"])))
    usual = 8 if lora else 32
    batch = max(usual // 2 if devices.is_cpu else usual, devices.count)
    batch = -(-batch // devices.count) * devices.count
    pictures = card["pictures"]
    names = ["stage1"]
    if paired:
        names += ["stage2", *(["stage3"] if high > resolution else [])]
    for name in names:
        passes, least, most = LORA_PASSES if lora else PASSES[name]
        steps = _round(int(np.clip(passes * pictures // batch, least, most)))
        sides = high if name == "stage3" else resolution
        seen = f"each of {pictures} pictures about {max(1, round(steps * batch / pictures))} times"
        made.put(f"{name}.steps", steps, seen)
        made.put(f"{name}.batch", batch, "half on a CPU" if devices.is_cpu else "")
        made.put(f"{name}.resolution", sides, _why_side(sides, side, sampling))
        made.put(f"{name}.warmup", min(100, steps // 10))
    if lora:
        return
    made.reasons["stage1"] = "Each picture is its own reference: identity."
    if "stage2" in names:
        made.put("stage2.paired", 1.0)
        made.reasons["stage2"] = "Another picture of the character is the reference: control."
    else:
        made.reasons["stage1"] += " Too few characters have two pictures for a stage 2."
    if "stage3" in names:
        made.put("stage3.paired", 0.5)
        made.reasons["stage3"] = "Both, at high resolution: texture."
    if 2 * card["focused"] >= pictures:
        for name in names:
            made.put(f"{name}.focus", 0.5, f"{card['focused']} pictures have focus boxes")
    further = np.bincount(dataset.others[:, 0], minlength=pictures)
    most = 1 + int(np.quantile(further, 1 - COMMON))
    for name in names if most > 1 else ():
        what = f"so many characters or more are shown by {np.mean(further + 1 >= most):.0%}"
        made.put(f"{name}.subjects", most, f"{what} of the pictures")


def _why_side(side: int, median: int, sampling: SamplingConfig) -> str:
    if side == BASE_RESOLUTION:
        return ""
    return f"the model draws {sampling.height} pixels; half of the pictures have {median} or more"


def _rates(made: Draft, flux: FluxConfig, *, continues: bool) -> None:
    """Set the rates that were measured where FLUX is narrow, and the text dropout of stage 1."""
    narrow = flux.hidden_size < NARROW
    stages = [name for name in made.values if name.startswith("stage")]
    for name in stages if narrow else ():
        for key, value in (("learning_rate", 3e-4), ("b2", 0.99), ("clip", 0.1)):
            made.put(f"{name}.{key}", value, MEASURED)
        made.put(f"{name}.remat", "none", "activations are small")
    if continues or "lora" in made.values:
        return
    why = "at first nothing but the reference tells what to draw"
    if narrow:
        made.put("stage1.text_dropout", 1.0, f"{why}; {MEASURED}")
    else:
        made.put("stage1.early_text_dropout", 1.0, why)
        made.put("stage1.early_steps", made.values["stage1"]["steps"] // 4)


def _reports(made: Draft, dataset: Dataset, sampling: SamplingConfig) -> None:
    stages: Mapping[str, Any] = {k: v for k, v in made.values.items() if k.startswith("stage")}
    total = sum(stage["steps"] for stage in stages.values())
    made.put("saving.every", _share(total, 5, 500), "a fifth of the run at most")
    if "lora" not in made.values:
        often = _share(total, 10, 250)
        made.put("reporting.effect_every", often, "a tenth of the run at most")
    made.put("reporting.preview_every", _share(total, 2, 500), "half of the run at most")
    captions = [dataset.read(number).caption for number in (0, len(dataset) // 2)]
    made.put("reporting.preview_prompts", captions, "captions of the data set")
    made.put("reporting.preview_steps", sampling.num_inference_steps, "as the model draws")


def _share(total: int, parts: int, most: int) -> int:
    """Return how often something is done: every so many steps of `total`."""
    return _round(min(max(total // parts, 10), most))


def _round(steps: int) -> int:
    """Return a number of steps with two digits that are not zero."""
    return int(float(f"{steps:.2g}"))


def _multiple(side: int) -> int:
    return max(PIXELS, side // PIXELS * PIXELS)
