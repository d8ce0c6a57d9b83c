"""`python -m infer words`: what can be said to a model whose text encoders know whole words."""

import argparse
import textwrap

from ic_jax import cli
from ic_jax.preprocessing.tokenizers import load_tokenizer
from ic_jax.weights.model_folder import SMALL_MODEL
from ic_jax.weights.model_source import open_model
from infer import demo


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `words`."""
    model = "MODEL folder or Hub id (default: the small model that comes with ic_jax)"
    parser.add_argument("--model", type=cli.path, help=model)


def run(args: argparse.Namespace) -> None:
    """Print the words, and captions to copy for the small model."""
    model = open_model(args.model or SMALL_MODEL)
    if "tokenizer_2" not in model.components:
        raise ValueError(f"{model.path}: has no tokenizer; convert it with --t5 and --tokenizer-2")
    words = load_tokenizer(model.path / "tokenizer_2", "<pad>").words
    if words is None:
        print(f"{model.path}: takes any text; its tokens are parts of words")
        return
    print(textwrap.fill(" ".join(words), 100, break_on_hyphens=False))
    print(f"\n{len(words)} words; others are passed over, with a warning.")
    if args.model is None:
        print("Captions to copy:\n")
        print("\n".join(demo.EXAMPLES))
