"""Model card of what was trained: a README.md with the metadata that the Hugging Face Hub reads."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from ic_jax.config import CONFIGS
from ic_jax.version import __version__
from ic_jax.weights import loading
from ic_jax.weights.model_folder import HUB_IDS, SMALL_MODEL, ModelFolder
from train.data.card_reading import read_card
from train.data.errors import DataError
from train.effect import EFFECT
from train.new.recipe_text import changed_text
from train.recipe import Recipe, Reporting, Saving
from train.run_folder import read_metrics

TASK = "text-to-image"
KONTEXT_ID = "black-forest-labs/FLUX.1-Kontext-dev"


@dataclass(frozen=True)
class Base:
    """Published model that a MODEL folder's transformer has the sizes of, and its licence."""

    hub_id: str
    license: dict[str, str]  # for the card's metadata
    license_text: str

    @classmethod
    def of(cls, model: ModelFolder) -> "Base":
        """Return the base of a MODEL folder; its fields are empty for an unknown one."""
        config = loading.read_config(model, "transformer")
        if config == CONFIGS["flux-dev"]:
            hub_id = KONTEXT_ID if model.is_kontext else HUB_IDS["flux"]
            link = f"https://huggingface.co/{hub_id}/blob/main/LICENSE.md"
            name = "FLUX.1 [dev] Non-Commercial License"
            metadata = {"license_name": "flux-1-dev-non-commercial-license", "license_link": link}
            return cls(hub_id, {"license": "other"} | metadata, f"the {name} ({link})")
        if config == CONFIGS["flux-schnell"]:
            apache = {"license": "apache-2.0"}
            return cls("black-forest-labs/FLUX.1-schnell", apache, "Apache-2.0")
        small = ModelFolder.open(SMALL_MODEL).components["transformer"]
        if model.components["transformer"] == small:
            return cls("", {"license": "apache-2.0"}, "Apache-2.0 (the small model of ic_jax)")
        return cls("", {"license": "unknown"}, "not known to ic_jax")


@dataclass(frozen=True)
class Trained:
    """What a run trained, and where it was exported to."""

    recipe: Recipe
    run: Path
    model: ModelFolder  # the base
    step: int
    out: Path  # MODEL folder, or file of a LoRA
    weights: str  # which are exported, in words

    def card(self, hub_id: str = "") -> str:
        """Return the text of the card; `hub_id` is where it is to be found, by default `out`."""
        base = Base.of(self.model)
        sections = [
            f"---\n{_metadata(self, base)}\n---",
            f"# {self.out.stem}",
            _what(self, base),
            f"## Use\n\n{_use(self, base, hub_id or str(self.out.name))}",
            f"## Training\n\n{_training(self)}",
            f"## Data\n\n{_data(self.recipe)}",
            f"## Recipe\n\n```toml\n{changed_text(_without_places(self.recipe))}```",
            f"## Licence\n\n{_licence(self, base)}",
        ]
        return "\n\n".join(sections) + "\n"

    @property
    def continues_adapter(self) -> bool:
        """Whether training began with the adapter that the base's folder has."""
        return not self.recipe.lora and not self.recipe.adapter


def figures(run: Path, step: int) -> dict[str, float]:
    """Return the last loss and the last reference effect that a run reported up to a step."""
    values: dict[str, float] = {}
    for line in read_metrics(run):
        if line["step"] <= step:
            values |= {name: line[name] for name in ("loss", EFFECT) if name in line}
    return values


def _metadata(trained: Trained, base: Base) -> str:
    recipe = trained.recipe
    optional: dict[str, Any] = dict(base.license)
    if base.hub_id:
        published = trained.continues_adapter and _is_published_adapter(trained.model)
        bases = [base.hub_id, *([HUB_IDS["adapter"]] if published else [])]
        optional |= {"base_model": bases, "base_model_relation": "adapter"}
    if recipe.trigger:
        optional["instance_prompt"] = recipe.trigger
    if EFFECT in (reported := figures(trained.run, trained.step)):
        optional["model_name"] = trained.out.stem
        optional["eval_results"] = [
            EvalResult(
                task_type=TASK,
                dataset_type="held-out characters",
                dataset_name=recipe.data.name,
                metric_type="reference-effect",
                metric_name="Reference effect",
                metric_value=round(reported[EFFECT], 5),
            )
        ]
    kind = ["lora"] if recipe.lora else ["instantcharacter", "image-prompt-adapter"]
    return ModelCardData(
        library_name="diffusers" if recipe.lora and base.hub_id else "ic_jax",
        pipeline_tag=TASK,
        tags=[TASK, "flux", *kind, "jax"],
        **optional,
    ).to_yaml()


def _is_published_adapter(model: ModelFolder) -> bool:
    return loading.read_config(model, "adapter") == CONFIGS["instantcharacter"]


def _what(trained: Trained, base: Base) -> str:
    recipe = trained.recipe
    what = "A style LoRA" if recipe.lora else "An image-prompt adapter (InstantCharacter)"
    sizes = f"of [{base.hub_id}](https://huggingface.co/{base.hub_id})'s sizes"
    of = sizes if base.hub_id else "of its own sizes"
    return (
        f"{what} for a FLUX model {of}, trained with ic_jax {__version__}: step {trained.step} of "
        f"{recipe.total_steps}, {trained.weights}."
    )


def _use(trained: Trained, base: Base, place: str) -> str:
    trigger = trained.recipe.trigger
    if not trained.recipe.lora:
        return (
            "From a checkout of ic_jax:\n\n"
            f'    python -m infer --model {place} --subject girl.png --prompt "riding a horse"\n\n'
            "For the published PyTorch pipeline of InstantCharacter, and ComfyUI nodes that load "
            "its file,\nconvert it back, which writes `torch/instantcharacter_ip-adapter.bin`:\n\n"
            f"    python -m convert to-torch {place} --out torch"
        )
    name = trained.out.name
    option = f" --trigger {json.dumps(trigger)}" if trigger else ""
    prompt = ", ".join(filter(None, [trigger, "a cat on a roof"]))
    folder = place if place != name else "."
    file = place if place == name else f"{place}/{name}"
    return (
        "From a checkout of ic_jax:\n\n"
        f'    python -m infer --model MODEL --lora {file}{option} --prompt "a cat on a roof"\n\n'
        "With diffusers:\n\n"
        "```python\n"
        "from diffusers import FluxPipeline\n\n"
        f'pipe = FluxPipeline.from_pretrained("{base.hub_id or "torch/flux"}")\n'
        f'pipe.load_lora_weights("{folder}", weight_name="{name}")\n'
        f"picture = pipe({json.dumps(prompt, ensure_ascii=False)}).images[0]\n"
        "```\n\n"
        f"In ComfyUI, put `{name}` into `models/loras`; its layout is that of diffusers."
    )


def _training(trained: Trained) -> str:
    recipe = trained.recipe
    rows = [
        f"| {name} | {s.steps} | {s.batch} | {s.resolution} | {s.paired:g} | {s.learning_rate:g} |"
        for name, s in recipe.stages.items()
    ]
    lines = [
        "| stage | steps | batch | pixels | paired | learning rate |",
        "| --- | --- | --- | --- | --- | --- |",
        *rows,
        "",
        f"Seed {recipe.seed}; {recipe.optimizer}; computed in {recipe.dtype}.",
    ]
    reported = figures(trained.run, trained.step)
    if "loss" in reported:
        lines.append(f"Last loss: {reported['loss']:.4f}.")
    if EFFECT in reported:
        lines.append(
            f"Reference effect: {reported[EFFECT]:+.4f}, the rise of the loss on held-out "
            "characters where another\ncharacter's picture is the reference; 0 would mean that "
            "the reference is ignored."
        )
    elif not recipe.lora:
        lines.append("Reference effect: not measured.")
    return "\n".join(lines)


def _data(recipe: Recipe) -> str:
    try:
        card = read_card(recipe.data)
    except DataError:
        return "The data set was not at hand when this was written."
    lines = [
        f"{card['pictures']} pictures of {card['characters']} characters; {card['in_pairs']} of "
        "them have another picture of their\ncharacter."
    ]
    if recipe.holdout:
        lines.append(f"The share {recipe.holdout:g} of the characters is held out of training.")
    return "\n".join(lines)


def _without_places(recipe: Recipe) -> Recipe:
    """Return a recipe for others to read: without paths, prompts and reports of its author."""
    names: dict[str, Any] = {k: Path(getattr(recipe, k).name) for k in ("model", "data", "out")}
    if recipe.lora:
        names["lora"] = replace(recipe.lora, start=Path(recipe.lora.start).name)
    return replace(
        recipe,
        cache=Path(recipe.cache).name,
        saving=Saving(),
        reporting=Reporting(),
        **names,
    )


def _licence(trained: Trained, base: Base) -> str:
    text = f"The licence of the base is {base.license_text}; it applies to what is trained from it."
    if trained.continues_adapter and base.hub_id:
        text += (
            "\nTraining began with another adapter, whose licence applies, too: "
            f"[{HUB_IDS['adapter']}](https://huggingface.co/{HUB_IDS['adapter']}) is for academic, "
            "research and\neducation use only."
        )
    return text
