"""The training of style LoRAs against peft in PyTorch: their start, gradients and files."""

import json
from dataclasses import replace

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch

from ic_jax.config import ConfigError
from ic_jax.flow import position_ids
from ic_jax.models.rope import rope_table
from ic_jax.weights.lora.lora_set import LoraSet
from ic_jax.weights.lora.reading import read_lora
from ic_jax.weights.lora.source import find_lora
from ic_jax.weights.lora.targets import targets_of
from ic_jax.weights.lora.writing import Training, write_lora
from ic_jax.weights.safetensors_io import data_digest, read_metadata
from ic_jax.weights.tensors import WeightsError
from tests.lora_files import FLUX
from tests.oracle import converted, randomize, relative
from train.checkpoints import MANIFESTS
from train.lora import initial, published, targeted
from train.lora_start import continued, read_start
from train.objective import Examples, velocity
from train.recipe import ATTENTION, LoraConfig
from train.step import gradient_of

# Stacked and single maps, one that is applied block by block, and one that ends two names.
SETTINGS = LoraConfig(rank=4, alpha=6.0, targets=(*ATTENTION, "proj_out", "norm1.linear", "net.2"))
GRID = (4, 6)

pytestmark = pytest.mark.usefixtures("optax_promotes")


@pytest.fixture(scope="module")
def case():
    """FLUX in both, a LoRA that changes something, and examples."""
    theirs = randomize(diffusers.FluxTransformer2DModel(**FLUX.to_dict()))
    ours = converted(theirs)
    lora = initial(ours, SETTINGS, seed=1)
    rng = np.random.default_rng(0)
    lora = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape, np.float32), lora)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape, np.float32))  # noqa: E731
    n = GRID[0] * GRID[1]
    examples = Examples(
        latents=draw(2, n, 8),
        noise=draw(2, n, 8),
        sigma=jnp.float32([0.3, 0.8]),
        prompt_embeds=draw(2, 5, 24),
        pooled=draw(2, 20),
        features=None,
        subject_scale=jnp.ones(2),
        guidance=jnp.ones(2),
    )
    return theirs, ours, lora, examples, rope_table(position_ids(5, *GRID), FLUX)


def torch_velocity(model, e):
    def tensor(x):
        return torch.from_numpy(np.array(x))

    sigma = tensor(e.sigma)[:, None, None]
    ids = torch.from_numpy(position_ids(5, *GRID)).float()
    return model(
        hidden_states=(1 - sigma) * tensor(e.latents) + sigma * tensor(e.noise),
        encoder_hidden_states=tensor(e.prompt_embeds),
        pooled_projections=tensor(e.pooled),
        timestep=tensor(e.sigma),
        guidance=tensor(e.guidance),
        txt_ids=ids[:5],
        img_ids=ids[5:],
    ).sample


def test_it_starts_as_peft_does_and_changes_nothing(case):
    _, flux, _, examples, rope = case
    lora = initial(flux, SETTINGS, seed=0)
    for pair in lora.values():
        a = np.asarray(pair.a[...])
        assert not pair.b[...].any()
        limit = a.shape[-2] ** -0.5
        assert 0.9 * limit < np.abs(a).max() <= limit
    before = len(jax.tree.leaves(flux))
    plain = velocity({}, flux, examples, rope)
    np.testing.assert_array_equal(velocity(lora, flux, examples, rope), plain)
    assert len(jax.tree.leaves(flux)) == before


def test_velocity_and_gradients_equal_peft(case):
    theirs, ours, lora, examples, rope = case
    config = peft.LoraConfig(
        r=SETTINGS.rank, lora_alpha=SETTINGS.alpha, target_modules=list(SETTINGS.targets)
    )
    theirs.add_adapter(config)
    parameters = {
        name.replace(".default", ""): p for name, p in theirs.named_parameters() if "lora_" in name
    }

    def by_name(tree):
        return {
            f"{module}.lora_{part}.weight": getattr(pair, part.lower())
            for (_, module), pair in published(tree).items()
            for part in "AB"
        }

    values = by_name(lora)
    assert values.keys() == parameters.keys()
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(torch.from_numpy(np.ascontiguousarray(values[name])))
    out = torch_velocity(theirs, examples)
    target = torch.from_numpy(np.array(examples.noise - examples.latents))
    loss = (out - target).square().mean()
    loss.backward()

    for remat in ("none", "blocks", "dots"):
        (value, predicted), gradient = jax.jit(gradient_of, static_argnames="remat")(
            lora, ours, examples, rope, remat=remat
        )
        assert relative(value, loss.detach()) < 1e-5
        assert relative(predicted, out.detach()) < 1e-5
        for name, ours_ in by_name(gradient).items():
            assert relative(ours_, parameters[name].grad) < 1e-5, name
    theirs.delete_adapters("default")


@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_file_of_peft_itself_is_what_peft_computes(case, tmp_path, use_rslora):
    """The alpha is in a file of settings beside it."""
    _, ours, _, examples, rope = case
    theirs = randomize(diffusers.FluxTransformer2DModel(**FLUX.to_dict()))  # as the case's
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["attn.to_q", "proj_out"],
        init_lora_weights=False,
        use_rslora=use_rslora,
    )
    peft.get_peft_model(theirs, config).save_pretrained(tmp_path)
    expected = torch_velocity(theirs, examples).detach()
    targets = targets_of({"transformer": ours.config})
    applied = LoraSet(targets, lambda: {"transformer": ours})
    applied.add(read_lora(find_lora(tmp_path), targets=targets))
    assert relative(velocity({}, ours, examples, rope), expected) < 1e-5
    applied.clear()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_file_gives_diffusers_and_us_the_trained_velocity(case, tmp_path, dtype):
    theirs, ours, lora, examples, rope = case
    lora = jax.tree.map(lambda x: x.astype(dtype).astype(jnp.float32), lora)
    expected = velocity(lora, ours, examples, rope)
    file = tmp_path / "new" / "lora.safetensors"
    training = Training("ink drawing", "ic", 200)
    write_lora(file, published(lora), jnp.dtype(dtype), training=training)
    close = 1e-5 if dtype == "float32" else 2e-3  # B's scale of 1.5 is rounded into it

    theirs.load_lora_adapter(str(file.parent), weight_name=file.name, prefix="transformer")
    loaded = torch_velocity(theirs, examples).detach()
    theirs.delete_adapters(list(theirs.peft_config))
    assert relative(loaded, expected) < close
    applied = LoraSet(targets_of({"transformer": ours.config}), lambda: {"transformer": ours})
    applied.add(read_lora(file))
    merged = velocity({}, ours, examples, rope)
    applied.clear()
    assert relative(merged, expected) < close
    assert relative(velocity({}, ours, examples, rope), expected) > 0.01

    with pytest.raises(FileExistsError, match="give --overwrite"):
        write_lora(file, {}, jnp.dtype(dtype))
    with pytest.raises(ValueError, match=r"name it lora\.safetensors"):
        write_lora(tmp_path / "lora", {}, jnp.dtype(dtype))


def test_the_metadata_says_what_it_is_where_tools_look(case, tmp_path):
    _, _, lora, *_ = case
    file = tmp_path / "ink.safetensors"
    training = Training("ink drawing", "ic", 200)
    write_lora(file, published(lora), jnp.dtype("float32"), training=training)
    said = read_metadata(file)
    assert said["modelspec.trigger_phrase"] == "ink drawing"
    assert json.loads(said["ss_tag_frequency"]) == {"1": {"ink drawing": 1}}
    assert (said["ss_base_model_version"], said["modelspec.architecture"]) == (
        "flux1",
        "flux-1-dev/lora",
    )
    assert (said["ss_sd_model_name"], said["ss_steps"]) == ("ic", "200")
    assert (said["ss_network_dim"], said["ss_network_alpha"]) == ("4", "4")
    assert said["ic_jax.sha256"] == data_digest(file)
    settings = json.loads(said["lora_adapter_metadata"])
    assert (settings["transformer.r"], settings["transformer.lora_alpha"]) == (4, 4)


def test_a_flipped_bit_of_a_written_lora_is_told(case, tmp_path):
    _, _, lora, *_ = case
    file, rng = tmp_path / "ink.safetensors", np.random.default_rng(0)
    write_lora(file, published(lora), jnp.dtype("bfloat16"))
    whole = file.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for at in rng.integers(start, len(whole), 20):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        with pytest.raises(WeightsError, match=r"ink\.safetensors: differs from its checksum"):
            read_lora(file)
    file.write_bytes(whole)
    read_lora(file)


def test_training_goes_on_with_a_file(case, tmp_path):
    """At the same function, whatever its rank and scale, and with A to learn where it has none."""
    _, flux, lora, *_ = case
    file = tmp_path / "start.safetensors"
    changes = {k: v for k, v in published(lora).items() if "transformer_blocks.1." not in k[1]}
    write_lora(file, changes, jnp.dtype("float32"))
    settings = replace(SETTINGS, rank=6, alpha=3.0, start=str(file))
    start = read_start(settings, FLUX, tmp_path)
    pairs = continued(initial(flux, settings, seed=2), start)
    ours, theirs = published(pairs), published(lora)
    for key, change in ours.items():
        product = change.scale * change.b @ change.a
        expected = theirs[key].scale * theirs[key].b @ theirs[key].a if key in changes else 0.0
        np.testing.assert_allclose(product, expected + 0 * product, atol=1e-6)
        assert np.all(np.any(change.a, axis=1))
    assert jax.tree.structure(pairs) == jax.tree.structure(initial(flux, settings, seed=2))
    for change, message in (
        ({"rank": 3}, "has rank 4; set lora.rank to it or above"),
        ({"targets": ATTENTION}, "add it to lora.targets"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_start(replace(settings, **change), FLUX, tmp_path)
    assert read_start(SETTINGS, FLUX, tmp_path) is None
    file.unlink()
    with pytest.raises(FileNotFoundError, match="no such LoRA file"):
        read_start(settings, FLUX, tmp_path)
    (tmp_path / MANIFESTS).mkdir()
    (tmp_path / MANIFESTS / "3.json").touch()
    with pytest.warns(UserWarning, match="start.*the run's checkpoints replace it"):
        assert read_start(settings, FLUX, tmp_path) is None


def test_unknown_targets_name_the_near_ones(case):
    _, flux, *_ = case
    with pytest.raises(ConfigError, match=r"'attn.to_w' ends no .* did you mean attn.to_") as told:
        initial(flux, LoraConfig(targets=("to_q", "attn.to_w")), 0)
    assert "\n" not in str(told.value)
    with pytest.raises(ConfigError, match=r"such as \S+ is one"):
        initial(flux, LoraConfig(targets=("xyzzy",)), 0)
    names = ["a.*.attn.to_q", "a.*.attn.not_to_q", "b.to_q"]
    assert targeted(names, ("to_q",)) == ["a.*.attn.to_q", "b.to_q"]
    assert targeted(names, ("attn.to_q",)) == ["a.*.attn.to_q"]
