"""Parts of `python -m infer bench` by name, most telling first."""

from dataclasses import replace
from functools import partial

from ic_jax.measuring.parts import Budget, Part
from infer.bench import (
    attention_part,
    device_parts,
    drawing_parts,
    encoder_parts,
    versus_torch,
)
from infer.bench.drawing import Drawing, DrawingSettings

TRAINING, TORCH = "training", "torch"
TRAINING_SECONDS = 150.0  # that compiling and timing one step takes at most
EVERY = (
    *("machine", "ceilings", "attention", "stacked", "weights", "step", "picture", "profile"),
    *(TRAINING, "encoders", "alone", "variants", "program"),
)
USUAL = ("machine", "weights", "step", "picture", "profile")
AGAINST_TORCH = ("machine", "ceilings", TORCH)


def parts(settings: DrawingSettings, budget: Budget) -> dict[str, Part]:
    """Return all parts but the training, which is another program."""
    drawing, stacked = Drawing(settings), Drawing(settings, stacked=True)
    alone = Drawing(replace(settings, adapter=False))
    few = Drawing(settings, blocks=drawing_parts.FEW_BLOCKS)
    # The stacked form compiles fast; that of the pipeline may take minutes.
    weights = Part("weights", 30, partial(drawing_parts.weights, drawing))
    step = Part("step", 120, partial(drawing_parts.step, drawing, stacked))
    prepared = weights, step
    listed = (
        Part("machine", 0, device_parts.machine),
        Part("ceilings", 20, partial(device_parts.ceilings, drawing)),
        Part("attention", 30, partial(attention_part.attentions, drawing)),
        Part("stacked", 90, partial(drawing_parts.stacked_step, stacked)),
        *prepared,
        Part("picture", 20, partial(drawing_parts.picture, drawing), prepared),
        Part("profile", 20, partial(drawing_parts.step_profile, drawing), prepared),
        Part("encoders", 40, partial(encoder_parts.encoders, drawing)),
        Part("alone", 120, partial(drawing_parts.without_subject, alone)),
        Part("variants", 40, partial(drawing_parts.variants, few, budget)),
        Part("program", 90, partial(drawing_parts.one_program, drawing), [weights]),
        Part(TORCH, 120, partial(versus_torch.compare, drawing), prepared),
    )
    return {part.name: part for part in listed}
