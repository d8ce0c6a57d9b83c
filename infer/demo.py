"""What `python -m infer` draws when no model is named: the toy model of the golden cases."""

import argparse
from pathlib import Path

GOLDENS = Path(__file__).parent.parent / "tests" / "goldens"
MODEL = GOLDENS / "toy_model"
SUBJECT = GOLDENS / "tiny_instantcharacter" / "reference.png"
PROMPT = "A girl is playing a guitar in street"
SIDE = 128  # pixels

NOTICE = (
    "No --model given: drawing with the toy model, whose weights are random. The picture shows "
    "that everything runs; it shows no character. See the README for the real weights."
)


def fill(o: argparse.Namespace) -> None:
    """Put the toy model's settings where the options have none or full-size ones."""
    if not MODEL.is_dir():
        raise ValueError("give --model: the toy model is part of a checkout only")
    print(NOTICE)
    o.model = MODEL
    if o.subject is None and not o.prompt and not o.prompts:
        o.subject, o.prompt = str(SUBJECT), [PROMPT]
    o.height, o.width = min(o.height, SIDE), min(o.width, SIDE)
    o.max_sequence_length = min(o.max_sequence_length, 64)
