"""A small world to train in: a MODEL folder of random weights and a data set of drawn shapes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw

from ic_jax.config import ClipConfig, FluxConfig, T5Config, VaeConfig
from ic_jax.measuring.sizes import SIZES
from ic_jax.weights import loading, model_folder
from tests.conftest import GOLDENS
from train.data.prepare import PrepareOptions, prepare

FLUX = FluxConfig(
    num_layers=1,
    num_single_layers=1,
    num_attention_heads=2,
    attention_head_dim=16,
    joint_attention_dim=16,
    pooled_projection_dim=16,
    axes_dims_rope=(4, 6, 6),
    in_channels=8,
)
# Gradient norm to clip to where parameters are compared after Adam, which divides each element of
# the gradient by itself: one that is zero but for rounding would move its parameter by the full
# rate, up or down. So small a norm leaves them below Adam's epsilon, 1e-8, which divides them then.
CLIP = 1e-6
BENCH = SIZES["toy"].configs
CONFIGS = {
    "transformer": FLUX,
    "siglip": BENCH["siglip"],
    "dinov2": BENCH["dinov2"],
    "t5": T5Config(vocab_size=118, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2),
    "clip": ClipConfig(
        vocab_size=727,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=726,
    ),
    "vae": VaeConfig(block_out_channels=(8, 8), latent_channels=2, norm_num_groups=4),
    "adapter": replace(BENCH["adapter"], num_queries=4),
}


def initial(path: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Initial values by NumPy: the programs of the modules take a minute to compile."""
    *parents, name = path.split(".")
    if name == "bias" or "to_v_ip" in parents:
        return np.zeros(shape)
    if name in ("scale", "lambda1") or (name == "weight" and "norm" in parents[-1]):
        return np.ones(shape)
    values = rng.standard_normal(shape)
    if name == "kernel":
        return values / np.sqrt(np.prod(shape[-4:-1] if len(shape) == 4 else shape[-2]))
    return 0.1 * values


def write_model(out: Path) -> Path:
    """Random weights in every component, with the golden model's tokenizers."""
    rng = np.random.default_rng(0)
    with model_folder.create(out) as writer:
        for kind, config in CONFIGS.items():
            module = loading.abstract(kind, config, FLUX)
            for path, variable in loading.parameters(module).items():
                variable.set_value(jnp.asarray(initial(path, variable.shape, rng), jnp.float32))
            loading.write_component(writer, kind, module)
        for kind in ("tokenizer", "tokenizer_2"):
            for file in sorted((GOLDENS / "toy_model" / kind).iterdir()):
                writer.add_file(kind, file.name, file.read_bytes())
    return out


def write_data(folder: Path, characters: int = 12, views: int = 3, groups: int = 0) -> Path:
    """Discs, each character of its own colour, at several places; prepared.

    Of each two of the first `groups` characters there is a picture of both.
    """
    rng = np.random.default_rng(0)
    source = folder / "source"
    source.mkdir(parents=True)
    lines = []
    for c in range(characters):
        colour = tuple(int(x) for x in rng.integers(0, 200, 3))
        for v in range(views):
            picture = Image.new("RGB", (32, 32), "white")
            x, y = (int(n) for n in rng.integers(0, 16, 2))
            ImageDraw.Draw(picture).ellipse((x, y, x + 14, y + 14), fill=colour)
            picture.save(source / f"{c}-{v}.png")
            caption = f"a disc {'left' if x < 8 else 'right'}"
            entry: dict[str, Any] = {
                "file": f"{c}-{v}.png",
                "caption": caption,
                "character": f"c{c}",
            }
            entry["focus"] = [[x, y, x + 15, y + 15]]
            lines.append(json.dumps(entry))
    for c in range(0, groups, 2):
        both = Image.new("RGB", (64, 32), "white")
        for place in range(2):
            both.paste(Image.open(source / f"{c + place}-0.png"), (32 * place, 0))
        both.save(source / f"{c}-both.png")
        boxes = [
            {"character": f"c{c + place}", "box": [32 * place, 0, 32 * place + 32, 32]}
            for place in range(2)
        ]
        entry = {"file": f"{c}-both.png", "caption": "two discs", "subjects": boxes}
        lines.append(json.dumps(entry))
    (source / "metadata.jsonl").write_text("\n".join(lines))
    prepare(source, folder / "data", PrepareOptions(), workers=1)
    return folder / "data"
