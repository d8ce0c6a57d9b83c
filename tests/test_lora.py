"""Style LoRAs: what they change, and that nothing of them stays."""

import json

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch_file

from ic_jax.models.unstacked import unstack_flux
from ic_jax.weights import loading
from ic_jax.weights.lora import read_lora
from ic_jax.weights.lora_set import LoraSet
from ic_jax.weights.tensors import WeightsError
from tests.conftest import GOLDENS

STYLE = GOLDENS / "tiny_instantcharacter" / "style_lora.safetensors"


@pytest.fixture(scope="module", params=["stacked", "unstacked"])
def flux(tiny_model, request):
    flux = loading.load_component(tiny_model, "transformer", jnp.bfloat16)
    return flux if request.param == "stacked" else unstack_flux(flux)


@pytest.fixture
def loras(flux):
    applied = LoraSet({"transformer": flux})
    yield applied
    applied.clear()


def values(model):
    return {k: np.asarray(v[...]) for k, v in loading.parameters(model).items()}


def written(tmp_path, **changes):
    """The style LoRA with some of its keys changed; None removes one."""
    tensors = load_file(STYLE)
    tensors.update(changes)
    file = tmp_path / "lora.safetensors"
    save_file({k: v for k, v in tensors.items() if v is not None}, file)
    return file


def test_sum_is_taken_in_float32_from_the_base(flux, loras):
    before = values(flux)
    loras.add(read_lora(STYLE, 0.5))
    loras.add(read_lora(STYLE, 0.3))
    tensors = load_file(STYLE)
    for name, stack in (("transformer_blocks", 2), ("single_transformer_blocks", 3)):
        path = f"{name}.*.attn.to_q.kernel"
        ours = values(flux)[path]
        for i in range(stack):
            a, b = (tensors[f"transformer.{name}.{i}.attn.to_q.lora_{x}.weight"] for x in "AB")
            exact = before[path][i].astype(np.float32) + 0.8 * (b @ a).T
            np.testing.assert_allclose(ours[i].astype(np.float32), exact, rtol=2**-8)
    untouched = "context_embedder.kernel"
    np.testing.assert_array_equal(values(flux)[untouched], before[untouched])


def test_unloading_restores_every_bit(flux, loras):
    before = values(flux)
    for weight in (0.8, -1.3, 0.1):
        loras.add(read_lora(STYLE, weight))
    assert any((values(flux)[k] != v).any() for k, v in before.items())
    loras.clear()
    for path, value in values(flux).items():
        np.testing.assert_array_equal(value, before[path])


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


def test_settings_that_diffusers_keeps_in_the_header(flux, loras, tmp_path):
    """Read the header of FluxPipeline.save_lora_weights: alpha 16 at rank 4, one override."""
    layers = {k.removeprefix("transformer."): v for k, v in load_torch_file(STYLE).items()}
    settings = {
        "r": 4,
        "lora_alpha": 16,
        "alpha_pattern": {"proj_mlp": 2},
        "use_rslora": False,
        "use_dora": False,
    }
    diffusers.FluxPipeline.save_lora_weights(
        tmp_path, layers, transformer_lora_adapter_metadata=settings
    )
    lora = read_lora(tmp_path / "pytorch_lora_weights.safetensors")
    scales = {module: change.scale for (_, module), change in lora.changes.items()}
    assert {s for m, s in scales.items() if m.endswith("proj_mlp")} == {0.5}
    assert {s for m, s in scales.items() if not m.endswith("proj_mlp")} == {4.0}


def test_kinds_that_header_settings_name_are_refused(tmp_path):
    file = tmp_path / "lora.safetensors"
    for kind in ("use_rslora", "use_dora"):
        header = {"lora_adapter_metadata": json.dumps({f"transformer.{kind}": True})}
        save_file(load_file(STYLE), file, metadata=header)
        with pytest.raises(WeightsError, match=f"{kind} is set"):
            read_lora(file)


def test_triggers_are_remembered_in_order(loras):
    loras.add(read_lora(STYLE, trigger="ghibli style"))
    loras.add(read_lora(STYLE))
    loras.add(read_lora(STYLE, trigger="ink"))
    assert loras.triggers == ["ghibli style", "ink"]


KEY = "transformer.transformer_blocks.0.attn.to_q.lora_"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({KEY + "A.weight": None}, "to_q: lora_A.weight is missing"),
        ({KEY + "A.weight": np.ones((3, 64), np.float32)}, "do not share a rank"),
        ({KEY + "A.weight": np.ones((4, 63), np.float32)}, "for a map 63 -> 64"),
        ({KEY + "A.weight": np.full((4, 64), np.nan, np.float32)}, "not finite"),
        ({KEY + "dora_scale": np.ones(64, np.float32)}, "other keys, such as .*dora_scale"),
        ({"lora_unet_x.alpha": np.ones(1, np.float32)}, "not a LoRA in the peft layout"),
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
