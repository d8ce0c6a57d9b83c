"""Parts of a small model's foundations trained further, as those of the one that ships were.

    python -m examples.open_peeps.experiments.continue_training vae MODEL BETTER --steps 2000
    python -m examples.open_peeps.experiments.continue_training decoder MODEL SHARPER --steps 2000
    python -m examples.open_peeps.experiments.continue_training base BETTER MORE --steps 9000
    python -m examples.open_peeps.experiments.continue_training siglip MORE LAST --steps 2800

Each takes one part of MODEL for a start and the others as they are, an adapter too. That has to be
trained further after it, except after the decoder of the VAE, which leaves the latents what they
are; a cache of them has to be made again all the same, since it knows the VAE as a whole. The base
is FLUX with its text encoders. Stopped on its way, the same command goes on.
"""

import argparse
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from examples.open_peeps.base_model import word_tokenizer
from examples.open_peeps.base_model.autoencoder import train_decoder, train_vae
from examples.open_peeps.base_model.fit import Fit
from examples.open_peeps.base_model.flux import Base, train_base
from examples.open_peeps.base_model.pictures import Drawn, draw, draw_subjects
from examples.open_peeps.base_model.settings import PEEPS, Settings
from examples.open_peeps.base_model.vision import train_siglip
from examples.open_peeps.world.worlds import WORLDS
from ic_jax.weights import loading, model_folder
from ic_jax.weights.model_folder import ModelFolder

Modules = dict[str, Any]  # by component
Trained = tuple[tuple, dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m examples.open_peeps.experiments.continue_training", description=__doc__
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("model", type=Path, help="MODEL folder")
    parser.add_argument("more", type=Path, help="MODEL folder to be")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--rate", type=float, help="(default: that of the beginning)")
    parser.add_argument("--pictures", type=int, default=PEEPS.pictures, help="drawn for it")
    parser.add_argument("--seed", type=int, default=1, help="of all that is drawn by chance")
    given = parser.parse_args()
    kinds, batch, rate, trained = PARTS[given.part]
    if given.more.exists():
        parser.error(f"{given.more} exists; name another folder")
    model = ModelFolder.open(given.model)
    start = {kind: loading.load_component(model, kind, "float32") for kind in (*kinds, "vae")}
    settings = dataclasses.replace(PEEPS, seed=given.seed, pictures=given.pictures)
    # Other arguments are another training, which must not go on from this one's state.
    asked = hashlib.sha256(repr(sorted(vars(given).items())).encode()).hexdigest()[:8]
    kept = given.more.with_name(f"{given.more.name}.{given.part}-{asked}.npz")
    fit = Fit(given.steps, batch, given.rate or rate, given.seed, kept)
    began = time.perf_counter()
    modules, facts = trained(start, settings, fit)
    facts["seconds"] = round(time.perf_counter() - began)
    with model_folder.create(given.more) as writer:
        for kind in model.components:
            if kind in kinds:
                loading.write_component(writer, kind, modules[kinds.index(kind)])
            else:
                writer.add_from(model, kind)
    kept.unlink()
    print(json.dumps(facts))


def vae(start: Modules, settings: Settings, fit: Fit) -> Trained:
    """On whole pictures, as it is used. FLUX has to learn the latents that come of it."""
    settings = dataclasses.replace(settings, vae_crop=settings.side)
    found, facts = train_vae(settings, _pictures(settings), fit, start["vae"])
    return (found,), facts


def decoder(start: Modules, settings: Settings, fit: Fit) -> Trained:
    """Of the VAE, with more of the loss on heads: the rest has less to lose now."""
    settings = dataclasses.replace(settings, head_share=0.8)
    found, facts = train_decoder(settings, _pictures(settings), fit, start["vae"])
    return (found,), facts


def base(start: Modules, settings: Settings, fit: Fit) -> Trained:
    begun = Base(*(start[kind] for kind in PARTS["base"][0]))
    tokenizers, *_ = word_tokenizer.tokenizers(WORLDS[settings.world].words())
    return train_base(settings, _pictures(settings), start["vae"], begun, tokenizers, fit)


def siglip(start: Modules, settings: Settings, fit: Fit) -> Trained:
    """Its text tower starts anew."""
    drawn = draw_subjects(settings.world, settings.subjects, settings.side, settings.seed)
    tokenizers, _, clip_words = word_tokenizer.tokenizers(WORLDS[settings.world].words())
    clip = settings.clip(clip_words)
    tower, facts = train_siglip(settings, drawn, clip, tokenizers, fit, start["siglip"])
    return (tower,), facts


def _pictures(settings: Settings) -> Drawn:
    return draw(settings.world, settings.pictures, settings.side, settings.seed)


# Components, batch, rate of the beginning, and what trains them.
PARTS: dict[str, tuple[tuple[str, ...], int, float, Callable[..., Trained]]] = {
    "vae": (("vae",), PEEPS.vae_batch, PEEPS.vae_rate, vae),
    "decoder": (("vae",), PEEPS.vae_batch, PEEPS.vae_rate, decoder),
    "base": (("transformer", "t5", "clip"), PEEPS.base_batch, PEEPS.base_rate, base),
    "siglip": (("siglip",), PEEPS.encoder_batch, PEEPS.encoder_rate, siglip),
}


if __name__ == "__main__":
    main()
