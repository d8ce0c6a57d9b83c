"""What `python -m infer` draws when no model is named: the toy model of the golden cases."""

import argparse
from pathlib import Path

from ic_jax.cli import say

GOLDENS = Path(__file__).parent.parent / "tests" / "goldens"
MODEL = GOLDENS / "toy_model"
SUBJECT = GOLDENS / "tiny_instantcharacter" / "reference.png"
PROMPT = "A girl is playing a guitar in street"
SIDE = 128  # pixels
TEXT_LENGTH = 64  # T5 tokens

NOTICE = (
    "No --model given: drawing with the toy model, whose weights are random. The picture shows "
    "that everything runs; it shows no character. See the README for the real weights."
)


def fill(o: argparse.Namespace) -> None:
    """Put the toy model's settings where the options have none."""
    if not MODEL.is_dir():
        raise ValueError("give --model: the toy model is part of a checkout only")
    say(NOTICE)
    o.model = MODEL
    if o.subject is None and not o.prompt and not o.prompts:
        o.subject, o.prompt = str(SUBJECT), [PROMPT]
    o.height, o.width = (SIDE if x is None else x for x in (o.height, o.width))
    o.max_sequence_length = min(o.max_sequence_length or TEXT_LENGTH, TEXT_LENGTH)
