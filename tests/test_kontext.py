"""FLUX.1 Kontext: reference pictures, against diffusers' pipeline, and what its users rely on."""

import argparse
import json
import shutil
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from ic_jax import (
    InstantCharacterPipeline,
    ShardingError,
    auto_mesh,
    flow,
    make_mesh,
    sampler,
)
from ic_jax.models.target import compiling_for
from ic_jax.preprocessing import references
from ic_jax.preprocessing.references import SIZES, nearest_size, to_references
from ic_jax.runner import NOT_KONTEXT, _jitted
from ic_jax.sharding import parse
from ic_jax.weights.model_folder import ModelFolder
from infer import plan_command
from infer.commands import main
from tests.conftest import GOLDENS, TINY, convert, from_torch
from tests.oracle import relative

FOLDER = GOLDENS / "kontext"
STYLE = TINY / "style_lora.safetensors"
PICTURES = [FOLDER / f"case_1_ref_{i}.png" for i in range(2)]
SMALL = {
    "height": 64,
    "width": 48,
    "num_inference_steps": 2,
    "max_sequence_length": 32,
    "output_type": "latent",
}
slow = pytest.mark.slow  # compiles the programs of a mesh


@pytest.fixture(scope="module")
def kontext(tmp_path_factory):
    """A pipeline's folder that says that it is Kontext, and the MODEL folder made of it."""
    folder = tmp_path_factory.mktemp("kontext")
    shutil.copytree(TINY, folder / "torch")
    index = folder / "torch" / "flux" / "model_index.json"
    values = json.loads(index.read_text()) | {"_class_name": "FluxKontextPipeline"}
    index.write_text(json.dumps(values))
    return from_torch(folder / "MODEL", source=folder / "torch")


@pytest.fixture(scope="module")
def pipe(kontext):
    return InstantCharacterPipeline.from_pretrained(kontext, "float32")


class Case:
    """A golden case: the arguments of a call, and what diffusers computed for them."""

    def __init__(self, number):
        with safe_open(FOLDER / f"case_{number}.safetensors", "np") as f:
            self.config = json.loads(f.metadata()["config"])
            self.tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
        self.call = self.config["call"]
        self.pictures = sorted(FOLDER.glob(f"case_{number}_ref_*.png"))
        noise = jnp.asarray(np.moveaxis(self.tensors["in/noise"], 1, -1))
        self.arguments = {
            "height": self.call["height"],
            "width": self.call["width"],
            "guidance_scale": self.call["guidance"],
            "true_cfg_scale": self.call["true_cfg"],
            "latents": flow.pack(noise),
            **{k.removeprefix("in/"): v for k, v in self.tensors.items() if k.endswith("embeds")},
        }

    def draw(self, pipe, **arguments):
        reference = pipe.encode_reference(self.pictures, resize=False)
        return pipe(**self.arguments, reference_image=reference, **arguments).images

    def velocities(self, pipe, **arguments):
        """The velocity of each step, each from the golden latents."""
        latents = [self.tensors[f"out/step/{i}/latents"] for i in range(3)]
        sigmas, after = [], []

        def callback(_, step, timestep, values):
            sigmas.append(timestep / 1000)
            after.append(np.asarray(values["latents"]))
            return {"latents": latents[step + 1]} if step < 2 else None

        self.draw(pipe, callback_on_step_end=callback, output_type="latent", **arguments)
        lengths = np.diff([*sigmas, 0.0])
        return [(b - a) / d for a, b, d in zip(latents, after, lengths, strict=True)]


@pytest.fixture(scope="module", params=[0, 1])
def case(request):
    """One picture; and two with a reference each, a negative prompt and true guidance."""
    return Case(request.param)


def check_final(pipe, case):
    drawn = partial(case.draw, pipe, num_inference_steps=3)
    assert relative(drawn(output_type="latent"), case.tensors["out/final_latents"]) < 1e-4
    pictures = [np.asarray(image, int) for image in drawn(output_type="pil")]
    assert np.abs(pictures - case.tensors["out/image"].astype(int)).max() <= 2


# Against the published pipeline


def test_preprocessing_and_encoding_equal_the_published_ones(pipe, case):
    pixels = to_references(case.pictures, 16, resize=False)
    published = np.moveaxis(case.tensors["out/ref/pixels"], 1, -1)
    np.testing.assert_allclose(pixels / 127.5 - 1, published, atol=1e-6)
    latents, grid = pipe.encode_reference(case.pictures, resize=False)
    assert relative(latents, case.tensors["out/ref/tokens"]) < 1e-5
    height, width = (case.call[side] // 16 for side in ("height", "width"))
    ids = flow.position_ids(2, height, width, grid)
    published = [np.zeros((2, 3)), case.tensors["out/ids"], case.tensors["out/ref/0/ids"]]
    np.testing.assert_array_equal(ids, np.concatenate(published))


def test_velocities_equal_the_published_ones(pipe, case):
    golden = [case.tensors[f"out/step/{i}/velocity"] for i in range(3)]
    # Its noise levels before they are shifted: float32 throughout, so that ours differ by a bit.
    tokens = case.tensors["out/ids"].shape[0]
    factor, levels = flow.shift(tokens, pipe.scheduler), case.tensors["out/timesteps"].astype(float)
    own = 1 / (1 + factor * (1 / levels - 1))
    for ours, theirs in zip(case.velocities(pipe, sigmas=own), golden, strict=True):
        assert relative(ours, theirs) < 1e-5
    for ours, theirs in zip(case.velocities(pipe, num_inference_steps=3), golden, strict=True):
        assert relative(ours, theirs) < 3e-5


def test_pictures_equal_the_published_ones(pipe, case):
    check_final(pipe, case)


def test_unstacked_blocks_draw_the_same(kontext):
    with compiling_for("gpu"):
        check_final(InstantCharacterPipeline.from_pretrained(kontext, "float32"), Case(1))


@pytest.mark.parametrize("mesh", ["tensor=2", "context=2"])
@slow
def test_meshes_draw_the_same(kontext, mesh):
    pipe = InstantCharacterPipeline.from_pretrained(
        kontext, "float32", mesh=mesh, offload_encoders=True
    )
    for number in range(2):
        check_final(pipe, Case(number))
    if mesh == "context=2":
        odd = pipe.encode_reference(Image.new("RGB", (48, 48)), resize=False)
        with pytest.raises(ShardingError, match=r"21 tokens .* do not divide by context=2"):
            pipe("a", **SMALL, reference_image=odd)


def test_sizes_are_those_of_the_published_pipeline(case):
    for text, expected in case.config["reference_size_at_auto_resize"].items():
        width, height = map(int, text.split("x"))
        picture = np.zeros((height, width), np.uint8)
        assert to_references([picture], 16).shape == (1, *expected[::-1], 3)
    assert len(SIZES) == 17
    assert list(SIZES) == sorted(SIZES)
    assert {nearest_size(*size) for size in SIZES} == set(SIZES)


# Together with what else a call takes


@pytest.fixture(scope="module")
def two(pipe):
    """Two references of 4 x 2 tokens, in one batch and alone."""
    encode = partial(pipe.encode_reference, resize=False)
    sized = Image.open(PICTURES[1]).convert("RGB").resize((32, 64), Image.Resampling.LANCZOS)
    return encode(PICTURES), [encode(PICTURES[0]), encode(sized)]


def test_batches_equal_single_calls(pipe, two):
    both, alone = two
    prompts = ["a girl in the rain", "a boy on a bike"]
    batch = pipe(prompts, **SMALL, reference_image=both, seed=[7, 8]).images
    for i, (prompt, reference) in enumerate(zip(prompts, alone, strict=True)):
        drawn = pipe(
            prompt, **SMALL, reference_image=reference, seed=[7 + i, 9], num_images_per_prompt=2
        )
        assert relative(drawn.images[0], batch[i]) < 1e-5
    shared = pipe(prompts, **SMALL, reference_image=alone[0], seed=[7, 8]).images
    assert relative(shared[0], batch[0]) < 1e-5
    assert relative(shared[1], batch[1]) > 1e-3
    with pytest.raises(ValueError, match="3 prompts and 2 references do not go together"):
        pipe(["a", "b", "c"], **SMALL, reference_image=both)


def test_subjects_and_loras_go_with_references_and_others_compile_nothing(pipe, two):
    _, (reference, other) = two
    draw = partial(pipe, "a girl", **SMALL, reference_image=reference)
    subject = pipe.encode_subject(TINY / "reference.png")
    plain = draw().images
    drawn = draw(subject_image=subject).images
    assert relative(drawn, plain) > 1e-3
    assert relative(draw(subject_image=subject, subject_scale=0.0).images, plain) < 1e-5
    try:
        pipe.load_lora_weights(STYLE)
        beside = draw().images
        pipe.fuse_lora()
        assert relative(draw().images, beside) < 1e-5
        assert relative(beside, plain) > 1e-3
    finally:
        pipe.unload_lora_weights()
    programs = _jitted(sampler.sample, "cpu")
    compiled = programs._cache_size()
    np.testing.assert_array_equal(draw().images, plain)
    assert relative(draw(reference_image=other).images, plain) > 1e-3
    assert programs._cache_size() == compiled


# Kinds of models


def test_only_kontext_draws_with_references_without_a_warning(kontext, tiny_model):
    small = Image.new("RGB", (32, 16), "teal")
    pipe = InstantCharacterPipeline.from_pretrained(tiny_model, "float32", offload_encoders=True)
    with pytest.warns(UserWarning, match=NOT_KONTEXT) as warned:
        pipe.encode_reference(small, resize=False)
    assert [w.filename for w in warned] == [__file__]
    pipe = InstantCharacterPipeline.from_pretrained(kontext, "float32", offload_encoders=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe.encode_reference(small, resize=False)


def test_the_kind_is_kept_on_every_way(kontext, tiny_model, pipe, tmp_path, capsys):
    assert ModelFolder.open(kontext).is_kontext
    assert not ModelFolder.open(tiny_model).is_kontext
    convert("inspect", kontext)
    assert "FLUX.1 Kontext" in capsys.readouterr().out
    pipe.save_pretrained(tmp_path / "saved")
    assert ModelFolder.open(tmp_path / "saved").is_kontext
    convert("to-torch", kontext, "--out", tmp_path / "torch")
    index = json.loads((tmp_path / "torch" / "flux" / "model_index.json").read_text())
    assert index["_class_name"] == "FluxKontextPipeline"
    assert not list((tmp_path / "torch" / "flux" / "transformer").glob("pipeline.json"))
    convert("to-torch", kontext, "--out", tmp_path / "bfl", "--bfl")
    file = tmp_path / "bfl" / "flux1-kontext-dev.safetensors"
    for options, known in (([], False), (["--kontext"], True)):
        convert("from-torch", "--flux", file, "--out", tmp_path / "again", "--overwrite", *options)
        assert ModelFolder.open(tmp_path / "again").is_kontext == known


# Pictures that cannot be used, and the command line


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((15, 400, 3), np.uint8), "has 400 x 15 pixels; give one of at least 16 x 16"),
        (np.zeros((9000, 16, 3), np.uint8), "more than 8192 a side"),
        ("nowhere.png", "there is no such file"),
        (__file__, "is not a picture"),
        ([], "reference_image is an empty list"),
    ],
)
def test_pictures_that_cannot_be_used_are_refused_in_one_line(pipe, picture, message):
    with pytest.raises(ValueError, match=message) as raised:
        pipe("a", **SMALL, reference_image=picture)
    assert "\n" not in str(raised.value)


def test_latents_of_another_model_are_refused(pipe, two):
    both, _ = two
    with pytest.raises(ValueError, match=r"reference_image's latents has shape \[2, 8, 3\]"):
        pipe("a", **SMALL, reference_image=both._replace(latents=both.latents[..., :3]))


def test_infer_draws_with_a_reference_and_warns_once(tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(references, "SIZES", ((32, 64), (64, 32)))
    common = ["--model", str(tiny_model), "--height=64", "--width=48", "--steps=2"]
    common += ["--max-sequence-length=32", "--dtype=float32", "--no-compile-cache", "--prompt=a"]
    picture, file = str(PICTURES[0]), tmp_path / "a.png"
    assert main([*common, "--reference", picture, "--out", str(file)]) == 0
    out, err = capsys.readouterr()
    assert f"encoded {picture}" in out
    assert err.count(NOT_KONTEXT) == 1
    assert json.loads(Image.open(file).text["ic_jax"])["reference"] == picture
    assert main([*common, "--reference", __file__, "--out", str(file)]) != 0
    assert "is not a picture that can be read" in capsys.readouterr().err


def test_a_plan_counts_the_reference(kontext):
    shapes, mesh = auto_mesh.shapes_of(kontext, jnp.bfloat16), make_mesh(parse("data=1"))
    parser = argparse.ArgumentParser()
    plan_command.add_arguments(parser)
    options = ["--height=64", "--width=48", "--text-length=32", "--reference"]
    request = plan_command.request_shapes(parser.parse_args(options), shapes, mesh)
    assert request.reference.shape == (1, 64 * 64, 16)
    flux, adapter = shapes["transformer"], shapes["adapter"]
    assert jax.eval_shape(sampler.sample, flux, adapter, request).shape == (1, 4 * 3, 16)
