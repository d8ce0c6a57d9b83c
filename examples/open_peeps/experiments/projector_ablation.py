"""What each part of a trained projector tells of who it is, measured by blinding it.

    python -m examples.open_peeps.experiments.projector_ablation MODEL --triples 100

A blinded part sees the mean over all the references instead of its own one, so that it says nothing
of this person and is still what the rest expects: the cross-layer stack its shallow features, the
cross-scale stack its tiles, an encoder all that it gives. The resampler without a timestep has the
mean of its embeddings over the schedule. This takes away from a projector that was trained with
everything; one that was trained without might make up for it with the rest.

Writes projector_ablation.json: of held-out people, how many of the pictures show them.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax.numpy as jnp
from jax import Array

from benchmarks.origin import origin
from examples.open_peeps.evaluation import drawing, scores
from examples.open_peeps.evaluation.drawing import Pictures
from examples.open_peeps.evaluation.triples import Triple, triples
from examples.open_peeps.world.worlds import WORLDS
from ic_jax import InstantCharacterPipeline, flow
from ic_jax.models.features import SubjectFeatures
from ic_jax.models.layers import sinusoid
from ic_jax.models.projector import Resampler
from ic_jax.weights import loading

WORLD = "peeps"
RESULTS = Path(__file__).with_suffix(".json")
BLINDED = ("cross-layer stack", "cross-scale stack", "both stacks", "SigLIP", "DINOv2")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m examples.open_peeps.experiments.projector_ablation", description=__doc__
    )
    parser.add_argument("model", type=Path, help="MODEL folder")
    parser.add_argument("--triples", type=int, default=100)
    given = parser.parse_args()
    model = loading.load(given.model, "float32")
    assert model.adapter is not None
    assert model.siglip is not None
    assert model.vae is not None
    pipe, width = InstantCharacterPipeline(model), model.siglip.config.hidden_size
    asked = {name: triples(WORLD, name, given.triples) for name in WORLDS[WORLD].held_out}
    drawn = {people: _blinded(pipe, these, width) for people, these in asked.items()}
    resampler = model.adapter.image_proj.resampler
    _forget_time(resampler, _levels(pipe, model.vae.config.downscale))
    for people, these in asked.items():
        drawn[people]["no timestep"] = drawing.draw(pipe, these, 0, name="no timestep")
    found: dict[str, object] = {}
    for people, these in asked.items():
        rates = scores.scored(drawn[people], these)
        print(f"\n{people}\n{scores.table({row: scores.spread([r]) for row, r in rates.items()})}")
        found[people] = rates
    found["settings"] = {"triples": given.triples, "seed": 0}
    RESULTS.write_text(json.dumps(found | origin("jax"), indent=1) + "\n")


def _blinded(
    pipe: InstantCharacterPipeline, asked: list[Triple], width: int
) -> dict[str, Pictures]:
    """Pictures of every person, with all parts and with each blinded; `width` is SigLIP's."""
    seen = pipe.encode_subject([one.reference for one in asked])

    def draw(name: str, blind: Callable[[str, Array], Array]) -> Pictures:
        shown = SubjectFeatures(*map(blind, SubjectFeatures._fields, seen))
        return drawing.draw(
            pipe,
            asked,
            0,
            name=name,
            reference=lambda n: SubjectFeatures(*(x[n : n + 1] for x in shown)),
        )

    return {"all": draw("all", lambda _, x: x)} | {
        f"without {part}": draw(f"without {part}", partial(_without, part, width=width))
        for part in BLINDED
    }


def _without(part: str, field: str, x: Array, width: int) -> Array:
    """A field of the features [b, n, e], what the part reads of it replaced by its mean over b."""
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


def _levels(pipe: InstantCharacterPipeline, downscale: int) -> Array:
    """The timesteps of a picture, on the 0..1000 scale."""
    settings, side = pipe.sampling, downscale * flow.PATCH  # pixels of a token
    tokens = settings.height // side * (settings.width // side)
    levels = flow.schedule(settings.num_inference_steps, tokens, pipe.scheduler)
    return jnp.asarray(1000 * levels[:-1])


def _forget_time(resampler: Resampler, timesteps: Array) -> None:
    """Whatever the timestep, the mean of these timesteps' embeddings."""
    every = resampler.time_embedding(sinusoid(timesteps, resampler.time_channels))
    last = resampler.time_embedding.linear_2
    last.kernel.set_value(jnp.zeros_like(last.kernel[...]))
    assert last.bias is not None
    last.bias.set_value(every.mean(0))


if __name__ == "__main__":
    main()
