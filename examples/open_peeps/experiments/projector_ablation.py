"""Ablation of the projector: identity scores with one part at a time blinded."""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax.numpy as jnp
from jax import Array

from examples.open_peeps.evaluation import generation, scores
from examples.open_peeps.evaluation.generation import Pictures
from examples.open_peeps.evaluation.origin import origin
from examples.open_peeps.evaluation.triples import Triple, held_out_triples
from examples.open_peeps.world.worlds import WORLDS
from ic_jax import InstantCharacterPipeline, flow
from ic_jax.models.features import SubjectFeatures
from ic_jax.models.layers import sinusoid
from ic_jax.models.projector import Resampler
from ic_jax.weights import loading

WORLD = "peeps"
RESULTS = Path(__file__).with_suffix(".json")
BLINDED = ("cross-layer stack", "cross-scale stack", "both stacks", "SigLIP", "DINOv2")


def run(args: argparse.Namespace) -> None:
    """Generate and score with every ablation; print tables and write the results."""
    model = loading.load_model(args.model, "float32")
    assert model.adapter is not None
    assert model.siglip is not None
    assert model.vae is not None
    pipe, width = InstantCharacterPipeline(model), model.siglip.config.hidden_size
    triples = {p: held_out_triples(WORLD, p, args.triples) for p in WORLDS[WORLD].held_out}
    pictures = {people: _ablations(pipe, triples[people], width) for people in triples}
    resampler = model.adapter.image_proj.resampler
    _remove_time(resampler, _timesteps(pipe, model.vae.config.downscale))
    results: dict[str, object] = {}
    for people in triples:
        pictures[people]["no timestep"] = generation.generate(
            pipe, triples[people], 0, name="no timestep"
        )
        rates = scores.score_all(pictures[people], triples[people])
        print(f"\n{people}\n{scores.table({row: scores.spread([r]) for row, r in rates.items()})}")
        results[people] = rates
    results["settings"] = {"triples": args.triples, "seed": 0}
    RESULTS.write_text(json.dumps(results | origin(), indent=1) + "\n")


def _ablations(
    pipe: InstantCharacterPipeline, triples: list[Triple], width: int
) -> dict[str, Pictures]:
    """Generate every triple with all parts, and with each part blinded; `width` is SigLIP's."""
    features = pipe.encode_subject([triple.reference for triple in triples])

    def generate(name: str, blind: Callable[[str, Array], Array]) -> Pictures:
        blinded = SubjectFeatures(*map(blind, SubjectFeatures._fields, features))
        return generation.generate(
            pipe,
            triples,
            0,
            name=name,
            reference=lambda n: SubjectFeatures(*(x[n : n + 1] for x in blinded)),
        )

    return {"all": generate("all", lambda _, x: x)} | {
        f"without {part}": generate(f"without {part}", partial(_without, part, width=width))
        for part in BLINDED
    }


def _without(part: str, field: str, x: Array, width: int) -> Array:
    """Replace what `part` reads of a field of the features [b, n, e] by its mean over b."""
    mean = jnp.broadcast_to(x.mean(0), x.shape)
    shallow, tiles = field == "low_res_shallow", field == "high_res_deep"
    match part:
        case "cross-layer stack":
            return mean if shallow else x
        case "cross-scale stack":
            return mean if tiles else x
        case "both stacks":
            return mean if shallow or tiles else x
        case "SigLIP":
            return x.at[..., :width].set(mean[..., :width])
        case _:
            return x.at[..., width:].set(mean[..., width:])


def _timesteps(pipe: InstantCharacterPipeline, downscale: int) -> Array:
    """Return the timesteps of the sampling schedule, on the 0..1000 scale."""
    sampling, side = pipe.sampling, downscale * flow.PATCH  # pixels of a token
    tokens = sampling.height // side * (sampling.width // side)
    levels = flow.schedule(sampling.num_inference_steps, tokens, pipe.scheduler)
    return jnp.asarray(1000 * levels[:-1])


def _remove_time(resampler: Resampler, timesteps: Array) -> None:
    """Make the time embedding constant: the mean of the embeddings of `timesteps`."""
    embeddings = resampler.time_embedding(sinusoid(timesteps, resampler.time_channels))
    last = resampler.time_embedding.linear_2
    last.kernel.set_value(jnp.zeros_like(last.kernel[...]))
    assert last.bias is not None
    last.bias.set_value(embeddings.mean(0))
