"""What `python -m infer` draws when no model is named: a held-out character, with the small model
that comes with ic_jax."""

import argparse
from pathlib import Path

from ic_jax.cli import say
from ic_jax.weights.model_folder import SMALL_MODEL

SUBJECT = Path(__file__).with_suffix(".png")
PROMPT = (
    "A portrait of a person shrugging with both palms up, in a black V-neck over yellow sleeves, "
    "with a calm smile, on a teal background."
)

NOTICE = (
    "No --model given: drawing with the small model, which knows one world of drawn people. "
    'README.md, "The small model", says what it can be told.'
)


def fill(o: argparse.Namespace) -> None:
    """Name the small model, and what it is to draw where nothing is said."""
    say(NOTICE)
    o.model = SMALL_MODEL
    if o.subject is None and not o.prompt and not o.prompts:
        o.subject, o.prompt = str(SUBJECT), [PROMPT]
        say(f"It has never seen the character of {SUBJECT.name}; it is told: {PROMPT}")
