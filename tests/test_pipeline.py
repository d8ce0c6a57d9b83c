"""The pipeline against the published one."""

import json

import pytest
from safetensors import safe_open

from ic_jax import InstantCharacterPipeline
from ic_jax.models.target import compiling_for
from tests.conftest import REFERENCE, TINY
from tests.oracle import relative


@pytest.fixture(scope="module")
def golden():
    with safe_open(TINY / "expected.safetensors", "np") as f:
        tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
        return tensors, json.loads(f.metadata()["cases"])


@pytest.mark.parametrize("i", range(3))
def test_equals_the_published_pipeline(pipe, golden, i):
    check_case(pipe, golden, i)


@pytest.mark.parametrize("mesh", [None, pytest.param("tensor=2", marks=pytest.mark.slow)])
def test_the_form_for_gpus_equals_the_published_pipeline(tiny_model, golden, mesh):
    with compiling_for("gpu"):
        pipe = InstantCharacterPipeline.from_pretrained(tiny_model, "float32", mesh=mesh)
        check_case(pipe, golden, 2)  # with a LoRA


def check_case(pipe, golden, i):
    expected, cases = golden
    case = cases[i]
    if "trigger" in case:
        lora = {"weight": case["lora_weight"], "trigger": case["trigger"]}
        pipe.load_lora_weights(TINY / "style_lora.safetensors", **lora)

    def draw(output_type):
        return pipe(
            case["prompt"],
            negative_prompt=case.get("negative_prompt"),
            true_cfg_scale=case.get("true_cfg_scale", 1.0),
            height=case["height"],
            width=case["width"],
            num_inference_steps=case["steps"],
            guidance_scale=case["guidance_scale"],
            latents=expected[f"case/{i}/initial_latents"],
            subject_image=REFERENCE,
            subject_scale=case["subject_scale"],
            subject_fit="stretch",
            max_sequence_length=case["max_sequence_length"],
            output_type=output_type,
        ).images

    try:
        assert relative(draw("latent"), expected[f"case/{i}/final_latents"]) < 1e-4
        assert relative(draw("np"), expected[f"case/{i}/image"]) < 1e-4
    finally:
        pipe.unload_lora_weights()


def test_steps_equal_the_published_pipeline(pipe, golden):
    """Every step of case 0, seen through the callback; and the loop as one program agrees."""
    expected, cases = golden
    case, seen = cases[0], []

    def callback(pipeline, step, timestep, values):
        assert pipeline is pipe
        assert step == len(seen)
        seen.append((timestep, values["latents"]))

    arguments = {
        "prompt_embeds": expected["case/0/prompt_embeds"],
        "pooled_prompt_embeds": expected["case/0/pooled_prompt_embeds"],
        "height": case["height"],
        "width": case["width"],
        "num_inference_steps": case["steps"],
        "latents": expected["case/0/initial_latents"],
        "subject_image": REFERENCE,
        "subject_fit": "stretch",
        "output_type": "latent",
    }
    final = pipe(**arguments, callback_on_step_end=callback).images
    assert seen[0][0] == 1000.0
    for (_, ours), theirs in zip(seen, expected["case/0/latents_after_each_step"], strict=True):
        assert relative(ours, theirs) < 1e-4
    assert relative(pipe(**arguments).images, final) < 1e-6
