"""The projector and FLUX with the image-prompt attention, against the published code's outputs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from ic_jax.checkpoint import load_component
from ic_jax.features import SubjectFeatures
from ic_jax.models.flux import Flux, rope_table
from ic_jax.models.image_prompt import ImagePrompt
from tests.conftest import GOLDENS
from tests.oracle import convert, relative


class Golden:
    def __init__(self, folder):
        with safe_open(GOLDENS / "adapter.safetensors", "pt") as f:
            self.config = json.loads(f.metadata()["config"])
            self.tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
        transformer, adapter = folder / "transformer", folder / "adapter.safetensors"
        transformer.mkdir()
        save_file(self.group("transformer/"), transformer / "diffusion_pytorch_model.safetensors")
        sizes = {"_class_name": "FluxTransformer2DModel", **self.config["transformer"]}
        (transformer / "config.json").write_text(json.dumps(sizes))
        groups = ("image_proj", "ip_adapter")
        save_file({f"{g}.{k}": v for g in groups for k, v in self.group(f"{g}/").items()}, adapter)
        adapter.with_suffix(".json").write_text(json.dumps(self.config["projector"]))
        convert("--flux", transformer, "--adapter", adapter, "--out", folder / "MODEL")
        self.flux = load_component(folder / "MODEL", "transformer")
        self.adapter = load_component(folder / "MODEL", "adapter")
        self.flux_config = self.flux.config

    def group(self, prefix):
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    def __getitem__(self, name):
        return jnp.asarray(self.tensors[name].numpy())


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    return Golden(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("i", range(3))
def test_projector(golden, i):
    features = SubjectFeatures(*(golden[f"in/{name}"] for name in SubjectFeatures._fields))
    t = jnp.full(2, golden.config["timesteps"][i], jnp.float32)

    @jax.jit
    def tokens(projector, features, t):
        return projector.resampler(projector.gather(features), t)

    ours, temb = tokens(golden.adapter.image_proj, features, t)
    assert relative(ours, golden[f"out/{i}/subject_tokens"]) < 1e-5
    assert relative(temb, golden[f"out/{i}/timestep_embedding"]) < 1e-5


@pytest.mark.parametrize("i", range(3))
@pytest.mark.parametrize("j", range(3))
def test_velocity(golden, i, j):
    scale = golden.config["subject_scales"][j]
    ids = np.concatenate([golden["in/txt_ids"], golden["in/img_ids"]])
    prompt = None
    if scale is not None:
        prompt = ImagePrompt(
            golden.adapter.ip_adapter, golden[f"out/{i}/subject_tokens"], jnp.full(2, scale)
        )
    velocity = jax.jit(Flux.__call__)(
        golden.flux,
        golden["in/latents"],
        golden["in/prompt_embeds"],
        golden["in/pooled"],
        jnp.full(2, golden.config["timesteps"][i] / 1000),
        jnp.full(2, golden.config["guidance"]),
        rope_table(ids, golden.flux_config),
        prompt,
    )
    assert relative(velocity, golden[f"out/{i}/velocity/{j}"]) < 1e-5
