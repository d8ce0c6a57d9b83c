"""Image to image and inpainting, against diffusers' pipelines, and what their users rely on."""

import json

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders import vae as diffusers_vae
from diffusers.pipelines.flux import pipeline_flux_img2img, pipeline_flux_inpaint
from PIL import Image

from ic_jax import SubjectFeatures, flow, noise
from ic_jax.preprocessing.originals import Originals, read_mask
from infer.commands import main
from tests.conftest import TINY
from tests.oracle import relative

REFERENCE = TINY / "reference.png"
HEIGHT, WIDTH = 48, 64
SEEDS = (3, 4)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A picture to draw over and its mask, both of other sizes than what is drawn."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (6, 9, 3), np.uint8)).resize((66, 50))
    mask = Image.fromarray(rng.integers(0, 256, (5, 4), np.uint8)).resize((50, 45))
    picture.save(folder / "picture.png")
    mask.save(folder / "mask.png")
    return folder / "picture.png", folder / "mask.png"


@pytest.fixture(scope="module")
def embeddings():
    """Text embeddings of a prompt and of a negative one."""
    rng = np.random.default_rng(1)
    sizes = {"prompt_embeds": (1, 8, 40), "pooled_prompt_embeds": (1, 24)}
    sizes |= {f"negative_{name}": size for name, size in sizes.items()}
    return {name: rng.standard_normal(s).astype(np.float32) for name, s in sizes.items()}


def published(kind, monkeypatch, module, **arguments):
    """Final latents of a pipeline of diffusers that draws our noise and our posterior samples."""
    load = {"torch_dtype": torch.float32, "local_files_only": True}
    parts = {
        "transformer": diffusers.FluxTransformer2DModel,
        "vae": diffusers.AutoencoderKL,
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler,
    }
    loaded = {k: v.from_pretrained(TINY / "flux", subfolder=k, **load) for k, v in parts.items()}
    encoders = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    pipeline = kind(**loaded, **dict.fromkeys(encoders))
    pipeline.set_progress_bar_config(disable=True)
    size = HEIGHT // 8, WIDTH // 8, 4

    def first(values):
        def draw(*_, **__):
            return torch.from_numpy(np.moveaxis(np.asarray(values), -1, 1).copy())

        return draw

    seeds = jnp.array(SEEDS, jnp.uint32)
    samples = [jax.random.normal(jax.random.fold_in(jax.random.key(s), 1), size) for s in seeds]
    monkeypatch.setattr(module, "randn_tensor", first(noise(seeds, *size)))
    monkeypatch.setattr(diffusers_vae, "randn_tensor", first(np.stack(samples)))
    arguments = {k: torch.from_numpy(v) if "embeds" in k else v for k, v in arguments.items()}
    with torch.inference_mode():
        return pipeline(**arguments).images.numpy()


def call(embeddings, **arguments):
    common = {"height": HEIGHT, "width": WIDTH, "num_images_per_prompt": 2, "output_type": "latent"}
    return {**common, **embeddings, **arguments}


def test_image_to_image_equals_the_published_pipeline(pipe, pictures, embeddings, monkeypatch):
    picture, _ = pictures
    positive = {k: v for k, v in embeddings.items() if "negative" not in k}
    steps = {"num_inference_steps": 5, "strength": 0.7, "guidance_scale": 2.0}
    ours = pipe(**call(positive, **steps), image=picture, seed=SEEDS[0]).images
    expected = published(
        diffusers.FluxImg2ImgPipeline,
        monkeypatch,
        pipeline_flux_img2img,
        image=Image.open(picture),
        **call(positive, **steps),
    )
    assert relative(ours, expected) < 1e-4


def test_inpainting_equals_the_published_pipeline_and_keeps_with_a_subject_too(
    pipe, pictures, embeddings, monkeypatch
):
    """With true guidance; a subject of scale 0 is none."""
    picture, mask = pictures
    steps = {"num_inference_steps": 3, "strength": 0.6, "guidance_scale": 2.0}
    steps["true_cfg_scale"] = 2.0
    rng = np.random.default_rng(2)
    sizes = ((1, tokens, 48) for tokens in (4, 12, 16))
    subject = SubjectFeatures(*(rng.standard_normal(size).astype(np.float32) for size in sizes))

    def draw(scale):
        inputs = {"image": picture, "mask_image": mask, "subject_image": subject}
        return pipe(**call(embeddings, **steps), **inputs, seed=SEEDS, subject_scale=scale).images

    expected = published(
        diffusers.FluxInpaintPipeline,
        monkeypatch,
        pipeline_flux_inpaint,
        image=Image.open(picture),
        mask_image=Image.open(mask),
        **call(embeddings, **steps),
    )
    plain = np.asarray(draw(0.0))
    assert relative(plain, expected) < 1e-4
    drawn = np.asarray(draw(1.0))
    _, masks = Originals.read(picture, mask, None).resized(HEIGHT, WIDTH, 8)
    is_redrawn = np.asarray(flow.pack(jnp.repeat(1.0 * masks[..., None], 4, axis=-1)))[0] == 1
    assert 0.2 < is_redrawn.mean() < 0.8
    np.testing.assert_array_equal(drawn[:, ~is_redrawn], plain[:, ~is_redrawn])
    assert relative(drawn[:, is_redrawn], plain[:, is_redrawn]) > 1e-3


def test_a_schedule_is_cut_as_the_published_pipelines_cut_it():
    cut = lambda steps, strength: int(max(steps - min(steps * strength, steps), 0))  # noqa: E731
    for steps in (1, 2, 10, 28):
        for strength in np.linspace(0.05, 1, 20):
            assert flow.first_step(steps, strength) == cut(steps, strength) < steps
    assert flow.first_step(28, 1e-30) == 27  # the published ones refuse it: no step is left


def test_a_mask_with_transparency_is_drawn_anew_there():
    hole = np.full((2, 4, 4), 255, np.uint8)
    hole[:, 2:, 3] = [0, 55]
    np.testing.assert_array_equal(read_mask(hole)[0, :, 0], [0, 0, 255, 200])
    opaque = np.where(np.arange(4) < 2, 0, 255)[None, :, None].astype(np.uint8).repeat(4, -1)
    opaque[..., 3] = 255
    np.testing.assert_array_equal(read_mask(opaque), opaque[..., :3])


@pytest.mark.parametrize(
    ("sides", "given", "expected"),
    [
        ((768, 1024), (None, None), (768, 1024)),
        ((770, 1030), (None, None), (768, 1024)),
        ((3000, 4000), (None, None), (880, 1184)),
        ((500, 1000), (None, 512), (256, 512)),
        ((500, 1000), (512, None), (512, 1024)),
        ((500, 1000), (64, 64), (64, 64)),
        ((3, 2000), (None, None), (16, 2000)),
    ],
)
def test_the_size_is_that_of_the_picture_unless_it_is_given(sides, given, expected):
    originals = Originals([np.zeros((*sides, 3), np.uint8)], None)
    assert originals.size(*given, 1024 * 1024, 16) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": 0.5}, "strength does nothing without image"),
        ({"mask_image": REFERENCE}, "mask_image does nothing without image"),
        ({"image": REFERENCE, "strength": 0}, r"strength is 0; it must be within \(0, 1\]"),
        ({"image": REFERENCE, "strength": 1.5}, r"strength is 1.5; it must be within \(0, 1\]"),
        ({"image": REFERENCE, "strength": float("nan")}, "strength is nan; it must be a finite"),
        ({"image": "nowhere.png"}, "there is no such file"),
        ({"image": REFERENCE, "mask_image": []}, "mask_image is an empty list"),
        ({"image": [REFERENCE] * 3}, "2 prompts and 3 images do not go together"),
    ],
)
def test_what_cannot_be_drawn_over_is_refused_in_one_line(pipe, arguments, message):
    embeds = np.zeros((2, 8, 40), np.float32), np.zeros((2, 24), np.float32)
    with pytest.raises(ValueError, match=message) as raised:
        pipe(prompt_embeds=embeds[0], pooled_prompt_embeds=embeds[1], **arguments)
    assert "\n" not in str(raised.value)


def test_infer_draws_over_a_picture_and_draws_it_again(tiny_model, pictures, tmp_path, capsys):
    picture, mask = pictures
    file, again = tmp_path / "a.png", tmp_path / "b.png"
    running = ["--dtype=float32", "--no-compile-cache"]
    drawing = ["--model", str(tiny_model), "--steps=3", "--max-sequence-length=32", "--prompt=a"]
    over = ["--image", str(picture), "--mask", str(mask), "--strength=0.5"]
    assert main([*running, *drawing, *over, "--out", str(file)]) == 0
    told = json.loads(Image.open(file).text["ic_jax"])
    assert (told["image"], told["mask"], told["strength"]) == (str(picture), str(mask), 0.5)
    assert Image.open(file).size == (told["width"], told["height"]) == (64, 48)
    assert main([*running, "--from", str(file), "--out", str(again)]) == 0
    np.testing.assert_array_equal(np.asarray(Image.open(file)), np.asarray(Image.open(again)))
    capsys.readouterr()
    for options, message in (
        (["--mask", str(mask)], "--mask does nothing without --image"),
        (["--strength=0.5"], "--strength does nothing without --image"),
        (["--image", str(picture), "--strength=0"], "strength is 0.0; it must be within (0, 1]"),
        (["--image", __file__], "is not a picture that can be read"),
    ):
        assert main([*running, *drawing, *options, "--out", str(file)]) != 0
        assert message in capsys.readouterr().err
