"""Further training of one part of a small model."""

import argparse
import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from examples.open_peeps.base_model import word_tokenizer
from examples.open_peeps.base_model.autoencoder import train_decoder, train_vae
from examples.open_peeps.base_model.config import PEEPS, BaseModelConfig
from examples.open_peeps.base_model.fit import FitOptions
from examples.open_peeps.base_model.flux import TextToImage, train_base
from examples.open_peeps.base_model.renders import (
    Renders,
    render_references,
    render_rows,
    render_views,
)
from examples.open_peeps.base_model.vision import train_siglip
from examples.open_peeps.world.worlds import WORLDS
from ic_jax import cli
from ic_jax.weights import loading, model_folder
from ic_jax.weights.model_folder import ModelFolder

DESCRIPTION = """
Continue to train one part of MODEL and write the result as OUT, with all other parts unchanged:
vae, decoder (of the VAE), base (FLUX and the text encoders) or siglip. An adapter in MODEL must be
trained further afterwards, except after the decoder, which leaves the latents unchanged; an
encoded cache must be written again in any case. Interrupted, the same command resumes.
"""

MOST = 8  # squares in a row
Modules = dict[str, Any]  # by component
TrainedPart = tuple[tuple, dict[str, Any]]  # modules, figures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `run`."""
    parser.add_argument("part", choices=PARTS, help="what to train")
    parser.add_argument("model", metavar="MODEL", type=cli.path, help="MODEL folder to start from")
    parser.add_argument("out", metavar="OUT", type=cli.path, help="MODEL folder to write")
    parser.add_argument("--steps", metavar="N", type=int, required=True, help="training steps")
    parser.add_argument("--rate", type=float, help="learning rate (default: that of `train`)")
    parser.add_argument(
        "--pictures", metavar="N", type=int, default=PEEPS.pictures, help="pictures to render"
    )
    parser.add_argument(
        "--side",
        metavar="PIXELS",
        type=int,
        help="of the pictures, which OUT then draws by default (default: that of MODEL)",
    )
    parser.add_argument(
        "--people",
        metavar="N",
        type=int,
        default=1,
        help="squares of base's pictures, side by side with a person in each (default: 1)",
    )
    parser.add_argument("--seed", type=int, default=1, help="of the pictures and the noise")
    cli.add_compile_cache(parser)


def run(args: argparse.Namespace) -> None:
    """Train one part further, write OUT, and print the figures."""
    components, batch, rate, train = PARTS[args.part]
    if args.out.exists():
        raise FileExistsError(f"{args.out} exists; name another folder")
    model = ModelFolder.open(args.model)
    start = {c: loading.load_component(model, c, "float32") for c in (*components, "vae")}
    sampling = loading.read_config(model, "sampling")
    side = sampling.height if args.side is None else args.side
    config = dataclasses.replace(PEEPS, seed=args.seed, pictures=args.pictures, side=side)
    if not 1 <= args.people <= MOST:
        raise ValueError(f"--people is {args.people}; expected 1 to {MOST}")
    if args.people > 1:
        if args.part != "base":
            raise ValueError(f"--people is for base, not for {args.part}")
        train = partial(base, people=args.people)
    checkpoint = args.out.with_name(f"{args.out.name}.{args.part}-{_digest(args)}.state")
    rate = rate if args.rate is None else args.rate
    options = FitOptions(args.steps, batch, rate, args.seed, checkpoint)
    began = time.perf_counter()
    modules, figures = train(start, config, options)
    figures["seconds"] = round(time.perf_counter() - began)
    with model_folder.create(args.out) as writer:
        for component in model.components:
            if component == "sampling" and args.side is not None:
                drawn = dataclasses.replace(sampling, height=side, width=side)
                writer.add_config(component, drawn.to_dict())
            elif component in components:
                loading.write_component(writer, component, modules[components.index(component)])
            else:
                writer.add_from(model, component)
    shutil.rmtree(checkpoint)
    print(json.dumps(figures))


def _digest(args: argparse.Namespace) -> str:
    """Identify the training: other arguments must not resume from its checkpoint."""
    names = ("part", "model", "out", "steps", "rate", "pictures", "side", "people", "seed")
    return hashlib.sha256(repr([getattr(args, n) for n in names]).encode()).hexdigest()[:8]


def vae(start: Modules, config: BaseModelConfig, options: FitOptions) -> TrainedPart:
    """Train on whole pictures; FLUX must then learn the new latents."""
    config = dataclasses.replace(config, vae_crop=config.side)
    trained, figures = train_vae(config, _views(config), options, start["vae"])
    return (trained,), figures


def decoder(start: Modules, config: BaseModelConfig, options: FitOptions) -> TrainedPart:
    """Train the VAE's decoder with more of the loss on heads, since the rest has converged."""
    config = dataclasses.replace(config, head_share=0.8)
    trained, figures = train_decoder(config, _views(config), options, start["vae"])
    return (trained,), figures


def base(
    start: Modules, config: BaseModelConfig, options: FitOptions, people: int = 1
) -> TrainedPart:
    """Train FLUX and both text encoders, on pictures of so many squares side by side."""
    models = TextToImage(*(start[component] for component in PARTS["base"][0]))
    tokenizers, *_ = word_tokenizer.tokenizers(WORLDS[config.world].words())
    settings = config.world, config.pictures, config.side, config.seed
    renders = render_rows(*settings, people) if people > 1 else _views(config)
    return train_base(config, renders, start["vae"], models, tokenizers, options)


def siglip(start: Modules, config: BaseModelConfig, options: FitOptions) -> TrainedPart:
    """Train the image tower with a new text tower."""
    side = start["siglip"].config.image_size
    references = render_references(config.world, config.subjects, side, config.seed)
    tokenizers, _, vocabulary = word_tokenizer.tokenizers(WORLDS[config.world].words())
    clip = config.clip(vocabulary)
    tower, figures = train_siglip(config, references, clip, tokenizers, options, start["siglip"])
    return (tower,), figures


def _views(config: BaseModelConfig) -> Renders:
    return render_views(config.world, config.pictures, config.side, config.seed)


# Components, batch, learning rate of the first run, and the function that trains them.
PARTS: dict[str, tuple[tuple[str, ...], int, float, Callable[..., TrainedPart]]] = {
    "vae": (("vae",), PEEPS.vae_batch, PEEPS.vae_rate, vae),
    "decoder": (("vae",), PEEPS.vae_batch, PEEPS.vae_rate, decoder),
    "base": (("transformer", "t5", "clip"), PEEPS.base_batch, PEEPS.base_rate, base),
    "siglip": (("siglip",), PEEPS.encoder_batch, PEEPS.encoder_rate, siglip),
}
