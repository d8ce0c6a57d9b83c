"""Style LoRAs: what they change, and that nothing of them stays."""

import json
from dataclasses import replace
from functools import partial

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch_file

from ic_jax import InstantCharacterPipeline
from ic_jax.config import FluxConfig
from ic_jax.flow import position_ids
from ic_jax.models.rope import rope_table
from ic_jax.models.unstacked import split_output, unstack_flux
from ic_jax.weights import loading
from ic_jax.weights.lora.delta import LoraDelta, LoraFile
from ic_jax.weights.lora.lora_set import LoraSet, split_number
from ic_jax.weights.lora.reading import read_lora
from ic_jax.weights.lora.targets import targets_of
from ic_jax.weights.tensors import WeightsError
from tests.conftest import GOLDENS
from tests.oracle import relative

STYLE = GOLDENS / "tiny_instantcharacter" / "style_lora.safetensors"
RNG = np.random.default_rng(0)


GRID = (4, 4)


@pytest.fixture(scope="module", params=["split", "unstacked"])
def flux(tiny_model, request):
    flux = loading.load_component(tiny_model, "transformer", jnp.float32)
    return (split_output if request.param == "split" else unstack_flux)(flux)


@pytest.fixture(scope="module")
def merged(tiny_model):
    """Return a function from weighted LoRAs to the velocity of a model with changed weights."""
    model = loading.load_component(tiny_model, "transformer", jnp.float32)
    variables = loading.parameters(model)
    before = {name: np.asarray(variable[...]) for name, variable in variables.items()}

    def velocity_of(*weighted):
        sums = {name: value.copy() for name, value in before.items()}
        for lora, weight in weighted:
            for (_, module), change in lora.changes.items():
                name, number = split_number(module)
                at, factor = () if number is None else number, weight * change.scale
                sums[f"{name}.kernel"][at] += factor * (change.b @ change.a).T
                if change.bias is not None:
                    sums[f"{name}.bias"][at] += factor * change.bias
        for name, value in sums.items():
            variables[name].set_value(jnp.asarray(value))
        return np.asarray(velocity(model))

    return velocity_of


@pytest.fixture
def loras(flux):
    applied = LoraSet(targets_of({"transformer": flux.config}), lambda: {"transformer": flux})
    yield applied
    applied.clear()


def values(model):
    """Every array of a model, and of the LoRAs beside its weights."""
    return jax.tree.leaves(jax.device_get(model))


def kernels(model):
    return {k: np.asarray(v[...]) for k, v in loading.parameters(model).items()}


@jax.jit
def velocity(flux):
    draw = partial(jax.random.normal, jax.random.key(0))
    c = flux.config
    prompt, pooled = draw((1, 5, c.joint_attention_dim)), draw((1, c.pooled_projection_dim))
    rope = rope_table(position_ids(5, *GRID), c)
    latents = draw((1, GRID[0] * GRID[1], c.in_channels))
    return flux(latents, prompt, pooled, jnp.float32([0.7]), jnp.float32([3.5]), rope)


def written(tmp_path, **changes):
    """The style LoRA with some of its keys changed; None removes one."""
    tensors = load_file(STYLE)
    tensors.update(changes)
    file = tmp_path / "lora.safetensors"
    save_file({k: v for k, v in tensors.items() if v is not None}, file)
    return file


def test_several_at_once_equal_the_merged_model_and_compile_once(flux, loras, merged, tmp_path):
    """Other weights, another file of the same maps, fewer and more LoRAs: one program."""
    style = read_lora(STYLE)
    wide = {k: RNG.standard_normal(v.shape, np.float32) / 8 for k, v in load_file(STYLE).items()}
    ink = read_lora(written(tmp_path, **wide))
    before, base = kernels(flux), np.asarray(velocity(flux))

    def expect(*weighted):
        assert relative(velocity(flux), merged(*weighted)) < 1e-5

    loras.add(style, "style")
    expect((style, 1.0))
    programs = velocity._cache_size()
    loras.add(ink, "ink")
    expect((style, 1.0), (ink, 1.0))
    loras.activate({"ink": -0.6, "style": 0.3})
    expect((style, 0.3), (ink, -0.6))
    loras.activate({"ink": 2.0})
    expect((ink, 2.0))
    assert velocity._cache_size() == programs
    loras.merge()
    expect((ink, 2.0))
    with loras.inactive():
        np.testing.assert_array_equal(velocity(flux), base)
    expect((ink, 2.0))
    loras.unmerge()
    jax.tree.map(np.testing.assert_array_equal, kernels(flux), before)
    expect((ink, 2.0))
    loras.merge()
    loras.clear()
    np.testing.assert_array_equal(velocity(flux), base)
    assert velocity._cache_size() == programs
    jax.tree.map(np.testing.assert_array_equal, kernels(flux), before)


def test_every_map_takes_a_lora_with_a_bias(flux, loras, merged):
    """Maps of all kinds: in blocks, in none, fused or split."""
    changes = {}
    for name, (inputs, outputs) in loras.targets["transformer"].items():
        a, b = (RNG.standard_normal(s, np.float32) / 16 for s in ((2, inputs), (outputs, 2)))
        bias = RNG.standard_normal(outputs, np.float32) / 16
        changes["transformer", name] = LoraDelta(a, b, 0.5, bias)
    lora = LoraFile("all", changes)
    loras.add(lora)
    assert relative(velocity(flux), merged((lora, 1.0))) < 1e-5
    loras.merge()
    assert relative(velocity(flux), merged((lora, 1.0))) < 1e-5


def test_unloading_restores_every_bit(flux, loras):
    before = values(flux)
    for weight in (0.8, -1.3, 0.1):
        loras.add(read_lora(STYLE, weight))
    assert len(values(flux)) > len(before)
    loras.clear()
    jax.tree.map(np.testing.assert_array_equal, values(flux), before)


def test_weights_change_and_loras_go_bit_for_bit(flux, loras):
    """Whatever was applied in between, weights follow from the active LoRAs alone."""

    def expect(weights):
        jax.tree.map(np.testing.assert_array_equal, values(flux), weights)

    before = values(flux)
    loras.add(read_lora(STYLE, 0.5), "style")
    alone = values(flux)
    loras.add(read_lora(STYLE, 0.3, "ink"), "ink")
    both = values(flux)
    loras.activate({"style": -2.0})
    assert loras.triggers == []
    loras.activate({"ink": 0.3, "style": 0.5})
    expect(both)
    loras.activate({})
    expect(before)
    loras.activate({"style": 0.5, "ink": 0.3})
    with loras.inactive():
        expect(before)
    expect(both)
    loras.delete(["ink"])
    expect(alone)
    assert (list(loras.loras), loras.active) == (["style"], {"style": 0.5})
    for refused in (lambda: loras.activate({"ink": 1.0}), lambda: loras.delete(["style", "ink"])):
        with pytest.raises(ValueError, match="no LoRA is called 'ink'; loaded are: style"):
            refused()
    with pytest.raises(ValueError, match="weight of LoRA 'style' is nan"):
        loras.activate({"style": float("nan")})
    with pytest.raises(ValueError, match="a LoRA is called 'style' already"):
        loras.add(read_lora(STYLE), "style")
    expect(alone)
    loras.delete(["style"])
    expect(before)


def test_names_are_numbered_as_in_diffusers(loras):
    for _ in range(2):
        loras.add(read_lora(STYLE))
    assert list(loras.active) == ["default_0", "default_1"]
    loras.delete(["default_0"])
    loras.add(read_lora(STYLE))
    assert list(loras.active) == ["default_1", "default_0"]


def test_alpha_scales(flux, loras, tmp_path):
    alpha = {
        k.replace("lora_A.weight", "alpha"): np.array(2.0, np.float32)
        for k in load_file(STYLE)
        if "lora_A" in k
    }
    loras.add(read_lora(written(tmp_path, **alpha), 1.0))  # rank 4: half the strength
    halved = values(flux)
    loras.clear()
    loras.add(read_lora(STYLE, 0.5))
    jax.tree.map(np.testing.assert_array_equal, halved, values(flux))


@pytest.mark.parametrize(("use_rslora", "expected"), [(False, (0.5, 4.0)), (True, (1.0, 8.0))])
def test_settings_that_diffusers_keeps_in_the_header(tmp_path, use_rslora, expected):
    """Read the header of FluxPipeline.save_lora_weights: alpha 16 at rank 4, one override."""
    layers = {k.removeprefix("transformer."): v for k, v in load_torch_file(STYLE).items()}
    settings = {
        "r": 4,
        "lora_alpha": 16,
        "alpha_pattern": {"proj_mlp": 2},
        "use_rslora": use_rslora,
        "use_dora": False,
    }
    diffusers.FluxPipeline.save_lora_weights(
        tmp_path, layers, transformer_lora_adapter_metadata=settings
    )
    lora = read_lora(tmp_path / "pytorch_lora_weights.safetensors")
    scales = {module: change.scale for (_, module), change in lora.changes.items()}
    assert {s for m, s in scales.items() if m.endswith("proj_mlp")} == {expected[0]}
    assert {s for m, s in scales.items() if not m.endswith("proj_mlp")} == {expected[1]}


def test_a_dora_by_its_header_is_refused(tmp_path):
    file = tmp_path / "lora.safetensors"
    header = {"lora_adapter_metadata": json.dumps({"transformer.use_dora": True})}
    save_file(load_file(STYLE), file, metadata=header)
    with pytest.raises(WeightsError, match="use_dora is set"):
        read_lora(file)


def test_a_model_of_shapes_is_merged_without_values():
    """Programs are compiled ahead for a merged model, which has no matrices beside it."""
    config = FluxConfig(1, 1, 2, 16, 24, 12, (4, 6, 6), in_channels=16)
    model = loading.abstract("transformer", config)
    before = jax.tree.leaves(model)
    loras = LoraSet(targets_of({"transformer": config}), lambda: {"transformer": model})
    change = LoraDelta(np.ones((2, 16), np.float32), np.ones((32, 2), np.float32), 1.0)
    loras.add(LoraFile("style", {("transformer", "x_embedder"): change}))
    assert len(jax.tree.leaves(model)) > len(before)
    loras.merge()
    assert jax.tree.leaves(model) == before


def test_triggers_are_remembered_in_order(loras):
    loras.add(read_lora(STYLE, trigger="ghibli style"))
    loras.add(read_lora(STYLE))
    loras.add(read_lora(STYLE, trigger="ink"))
    assert loras.triggers == ["ghibli style", "ink"]


KEY = "transformer.transformer_blocks.0.attn.to_q.lora_"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({KEY + "A.weight": None}, "to_q: A of it are missing"),
        ({KEY + "A.weight": np.ones((3, 64), np.float32)}, "do not share a rank"),
        ({KEY + "A.weight": np.ones((4, 63), np.float32)}, "for a map 63 -> 64"),
        ({KEY + "A.weight": np.full((4, 64), np.nan, np.float32)}, "not finite"),
        (
            {
                KEY.replace(".0.", ".9.") + f"{x}.weight": np.ones(s, np.float32)
                for x, s in (("A", (4, 64)), ("B", (64, 4)))
            },
            "has no transformer_blocks.9.attn.to_q",
        ),
    ],
)
def test_files_that_do_not_fit_change_nothing(flux, loras, tmp_path, changes, message):
    before = values(flux)
    with pytest.raises(WeightsError, match=message):
        loras.add(read_lora(written(tmp_path, **changes)))
    jax.tree.map(np.testing.assert_array_equal, before, values(flux))


def test_weight_must_be_finite():
    with pytest.raises(ValueError, match="LoRA weight is nan"):
        read_lora(STYLE, float("nan"))


def test_text_encoders_take_loras_wherever_they_are(tiny_model):
    """T5 is loaded for each call here, and CLIP stays."""
    pipe = InstantCharacterPipeline.from_pretrained(tiny_model, "float32", offload_encoders=True)
    plain = pipe.encode_prompt("a fox")
    targets = targets_of(loading.folder_configs(loading.ModelFolder.open(tiny_model)))
    changes, merged = {}, {}
    for component in ("clip", "t5"):
        model = merged[component] = loading.load_component(tiny_model, component, jnp.float32)
        for module, sizes in targets[component].items():
            a, b = (RNG.standard_normal(s, np.float32) / 16 for s in ((2, sizes[0]), (sizes[1], 2)))
            changes[component, module] = LoraDelta(a, b, 1.0)
            name, number = split_number(module)
            kernel = loading.parameters(model)[f"{name}.kernel"]
            kernel.set_value(kernel[...].at[number].add((b @ a).T))
    pipe.load_lora_weights(LoraFile("text", changes), "text")
    assert pipe.get_list_adapters() == {"text_encoder": ["text"], "text_encoder_2": ["text"]}
    ours = pipe.encode_prompt("a fox")
    theirs = InstantCharacterPipeline(replace(pipe._model, **merged)).encode_prompt("a fox")
    for x, y in zip(ours, theirs, strict=True):
        assert relative(x, y) < 1e-5
    pipe.unload_lora_weights()
    jax.tree.map(np.testing.assert_array_equal, pipe.encode_prompt("a fox"), plain)
