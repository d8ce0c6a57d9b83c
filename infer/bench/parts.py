"""Parts of `python -m infer bench` by name, most telling first."""

from functools import partial

from ic_jax.measuring.parts import Budget, Part
from infer.bench import device_parts, drawing_parts, encoder_parts, versus_torch
from infer.bench.drawing import Drawing

TRAINING, TORCH = "training", "torch"
TRAINING_SECONDS = 150.0  # that compiling and timing one step takes at most
EVERY = (
    *("machine", "ceilings", "attention", "weights", "step", "profile", "picture"),
    *("encoders", "variants", TRAINING),
)
USUAL = ("machine", "weights", "step", "profile", "picture")
AGAINST_TORCH = ("machine", "ceilings", "weights", TORCH)


def parts(drawing: Drawing, budget: Budget) -> dict[str, Part]:
    """Return all parts but the training, which is another program."""
    reserve = TRAINING_SECONDS if device_parts.has_memory_to_train() else 0.0
    listed = (
        Part("machine", 0, device_parts.machine),
        Part("ceilings", 20, partial(device_parts.ceilings, drawing)),
        Part("attention", 30, partial(device_parts.attentions, drawing)),
        Part("weights", 40, partial(drawing_parts.weights, drawing)),
        Part("step", 90, partial(drawing_parts.prepare_and_step, drawing)),
        Part("profile", 20, partial(drawing_parts.step_profile, drawing)),
        Part("picture", 60, partial(drawing_parts.picture, drawing)),
        Part("encoders", 60 + reserve, partial(encoder_parts.encoders, drawing)),
        Part("variants", 60 + reserve, partial(drawing_parts.variants, drawing, budget, reserve)),
        Part(TORCH, 120, partial(versus_torch.compare, drawing)),
    )
    return {part.name: part for part in listed}
