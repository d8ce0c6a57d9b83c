"""The pipeline against the published one, and what its users rely on."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from safetensors import safe_open

from ic_jax import InstantCharacterPipeline
from ic_jax.config import SamplingConfig, SchedulerConfig
from ic_jax.models.flux import Flux
from ic_jax.models.target import compiling_for
from ic_jax.weights import loading
from ic_jax.weights.encoders import LARGE_ENCODERS
from tests.conftest import GOLDENS
from tests.oracle import relative

TINY = GOLDENS / "tiny_instantcharacter"
REFERENCE = TINY / "reference.png"
SMALL = {
    "height": 64,
    "width": 64,
    "num_inference_steps": 2,
    "max_sequence_length": 32,
    "output_type": "latent",
}


@pytest.fixture(scope="module")
def pipe(tiny_model):
    return InstantCharacterPipeline.from_pretrained(tiny_model, dtype="float32")


@pytest.fixture(scope="module")
def golden():
    with safe_open(TINY / "expected.safetensors", "np") as f:
        tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
        return tensors, json.loads(f.metadata()["cases"])


@pytest.fixture(scope="module")
def portraits(pipe):
    """Two characters: the reference, and its colours turned around."""
    reference = Image.open(REFERENCE).convert("RGB")
    return [reference, Image.fromarray(255 - np.asarray(reference))]


@pytest.fixture(scope="module")
def subjects(pipe, portraits):
    return [pipe.encode_subject(portrait) for portrait in portraits]


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


def test_callback_may_replace_latents(pipe, subjects):
    def to_zero(pipeline, step, timestep, values):
        return {"latents": values["latents"] * 0} if step == 1 else None

    final = pipe("a", **SMALL, subject_image=subjects[0], callback_on_step_end=to_zero).images
    assert not np.asarray(final).any()


def test_batch_equals_single_calls(pipe, portraits, subjects):
    prompts = ["a girl in the rain", "a boy on a bike"]
    batch = pipe(prompts, **SMALL, subject_image=portraits, seed=7, num_images_per_prompt=2)
    assert batch.seeds == [7, 8, 7, 8]
    singles = [
        pipe(prompt, **SMALL, subject_image=subject, seed=seed).images[0]
        for prompt, subject in zip(prompts, subjects, strict=True)
        for seed in (7, 8)
    ]
    assert relative(batch.images, np.stack(singles)) < 1e-5
    assert relative(singles[0], singles[2]) > 1e-2


@pytest.mark.slow  # compiles three programs; test_everything_at_once guides a batch as well
def test_true_guidance_in_a_batch_equals_single_calls(pipe, portraits, subjects):
    prompts = ["a girl in the rain", "a boy on a bike"]
    guided = SMALL | {"negative_prompt": "blurry", "true_cfg_scale": 2.5}
    batch = pipe(prompts, **guided, subject_image=portraits).images
    singles = [
        pipe(prompt, **guided, subject_image=subject).images[0]
        for prompt, subject in zip(prompts, subjects, strict=True)
    ]
    assert relative(batch, np.stack(singles)) < 1e-5


@pytest.mark.parametrize("scale", [None, 0.0])
def test_true_guidance_steers_towards_the_subject_where_the_negative_has_none(
    pipe, subjects, scale
):
    single_step = SMALL | {"num_inference_steps": 1, "output_type": "latent"}
    subject = {"subject_image": subjects[0], "subject_scale": 1.0}
    guided = pipe(
        "a girl",
        negative_prompt="blurry",
        true_cfg_scale=2.5,
        **single_step,
        **subject,
        negative_subject_scale=scale,
    ).images
    wanted = pipe("a girl", **single_step, **subject).images
    unwanted = pipe("blurry", **single_step, **({} if scale == 0 else subject)).images
    assert relative(guided, unwanted + 2.5 * (wanted - unwanted)) < 1e-5


def test_one_subject_or_one_prompt_serves_for_all(pipe, portraits, subjects):
    shared = pipe(["a", "b"], **SMALL, subject_image=subjects[0]).images
    assert relative(shared[1:], pipe("b", **SMALL, subject_image=subjects[0]).images) < 1e-5
    shared = pipe("a", **SMALL, subject_image=portraits).images
    assert relative(shared[1:], pipe("a", **SMALL, subject_image=subjects[1]).images) < 1e-5


def test_encoded_subjects_and_pictures_form_a_batch(pipe, portraits, subjects):
    pictures = pipe(["a", "b"], **SMALL, subject_image=portraits).images
    encoded = pipe(["a", "b"], **SMALL, subject_image=subjects).images
    mixed = pipe(["a", "b"], **SMALL, subject_image=[subjects[0], portraits[1]]).images
    assert relative(encoded, pictures) < 1e-5
    assert relative(mixed, pictures) < 1e-5


def test_everything_at_once_equals_single_calls(pipe, portraits, subjects):
    """2 prompts x 2 pictures, own subjects and negatives, true guidance, not square."""
    prompts, negatives = ["a girl in the rain", "a boy on a bike"], ["blurry", "dark"]
    wide = SMALL | {"width": 96, "true_cfg_scale": 2.5}
    batch = pipe(
        prompts,
        negative_prompt=negatives,
        **wide,
        subject_image=portraits,
        num_images_per_prompt=2,
        seed=[5, 6, 7, 8],
    ).images
    singles = [
        pipe(p, negative_prompt=n, **wide, subject_image=s, seed=seed).images[0]
        for p, n, s, pair in zip(prompts, negatives, subjects, ((5, 6), (7, 8)), strict=True)
        for seed in pair
    ]
    assert relative(batch, np.stack(singles)) < 1e-5


def test_features_of_another_dtype_are_cast_and_of_another_model_refused(pipe, subjects):
    half = jax.tree.map(lambda x: x.astype("bfloat16"), subjects[0])
    exact = pipe("a", **SMALL, subject_image=subjects[0]).images
    assert relative(pipe("a", **SMALL, subject_image=half).images, exact) < 0.03
    short = subjects[0]._replace(high_res_deep=subjects[0].high_res_deep[:, :10])
    with pytest.raises(ValueError, match=r"high_res_deep has shape \[1, 10, 48\]"):
        pipe("a", **SMALL, subject_image=short)


def test_callback_latents_of_another_shape_are_refused(pipe):
    with pytest.raises(ValueError, match="the callback's latents has shape"):
        pipe("a", **SMALL, callback_on_step_end=lambda *_: {"latents": np.zeros((1, 2, 3))})


def test_numpy_numbers_are_numbers(pipe):
    plain = pipe("a", **SMALL, seed=3, guidance_scale=3.5).images
    numbers = SMALL | {"height": np.int64(64), "num_inference_steps": np.int32(2)}
    same = pipe("a", **numbers, seed=np.int64(3), guidance_scale=np.float32(3.5)).images
    np.testing.assert_array_equal(plain, same)


def test_schnell_draws_and_guidance_does_nothing(tiny_model, subjects):
    """The golden model with FLUX.1-schnell's transformer and static schedule."""
    model = loading.load_model(tiny_model)
    config = dataclasses.replace(model.transformer.config, guidance_embeds=False)
    schnell = Flux(config, rngs=nnx.Rngs(0))
    scheduler = SchedulerConfig(use_dynamic_shifting=False, shift=1.0)
    pipe = InstantCharacterPipeline(
        dataclasses.replace(model, transformer=schnell, scheduler=scheduler)
    )
    drawn = [
        pipe("a", **SMALL, guidance_scale=g, subject_image=subjects[0]).images for g in (0.0, 3.5)
    ]
    np.testing.assert_array_equal(*drawn)
    assert relative(drawn[0], pipe("b", **SMALL, subject_image=subjects[0]).images) > 1e-4


def with_defaults(pipe, **defaults):
    """The pipeline of a model that has these defaults, with the same arrays."""
    sampling = SamplingConfig(64, 64, 2, max_sequence_length=32, **defaults)
    return InstantCharacterPipeline(dataclasses.replace(pipe._model, sampling=sampling))


def test_missing_arguments_take_the_models_defaults(pipe, subjects):
    of_model = with_defaults(pipe, subject_scale=0.5)
    drawn = of_model("a girl", subject_image=subjects[0], output_type="latent").images
    expected = pipe("a girl", subject_image=subjects[0], subject_scale=0.5, **SMALL).images
    assert np.array_equal(drawn, expected)


def test_an_empty_second_prompt_is_the_first_as_in_diffusers(pipe):
    girl, boy = (pipe.encode_prompt(text, None, 32) for text in ("a girl", "a boy"))
    both = pipe.encode_prompt("a girl", "a boy", 32)
    assert relative(both[0], boy[0]) < 1e-6
    assert relative(both[1], girl[1]) < 1e-6
    for second in ("", None):
        for ours, expected in zip(pipe.encode_prompt("a girl", second, 32), girl, strict=True):
            assert relative(ours, expected) < 1e-6


def test_negative_prompts_of_both_encoders(pipe):
    guided = SMALL | {"prompt": "a girl", "true_cfg_scale": 2.0}
    same = pipe(**guided, negative_prompt="dark").images
    empty = pipe(**guided, negative_prompt="dark", negative_prompt_2="").images
    np.testing.assert_array_equal(same, empty)
    other = pipe(**guided, negative_prompt="dark", negative_prompt_2="blurry").images
    assert relative(other, same) > 1e-3


def test_a_models_default_guidance_needs_something_to_steer_away_from(pipe, subjects):
    """Without a negative prompt, as diffusers, unless the model has a negative subject scale."""
    of_model, subject = with_defaults(pipe, true_cfg_scale=2.0), {"subject_image": subjects[0]}
    unguided = of_model("a girl", **subject, output_type="latent").images
    np.testing.assert_array_equal(unguided, pipe("a girl", **SMALL, **subject).images)
    of_model.sampling = dataclasses.replace(of_model.sampling, negative_subject_scale=0.0)
    guided = of_model("a girl", **subject, output_type="latent").images
    guidance = {"negative_prompt": "", "true_cfg_scale": 2.0, "negative_subject_scale": 0.0}
    np.testing.assert_array_equal(guided, pipe("a girl", **SMALL, **subject, **guidance).images)


@pytest.mark.parametrize("dtype", ["float16", "int8", "bf16"])
def test_other_dtypes_are_refused_before_loading(dtype):
    with pytest.raises(ValueError, match=f"dtype is '{dtype}'"):
        InstantCharacterPipeline.from_pretrained("nowhere", dtype)


def test_prompt_alone_is_plain_flux_and_subject_alone_draws(pipe, subjects):
    plain = pipe("a girl", **SMALL).images
    silent = pipe("a girl", **SMALL, subject_image=subjects[0], subject_scale=0.0).images
    assert relative(plain, silent) < 1e-6
    alone = pipe(subject_image=subjects[0], **SMALL).images
    assert relative(alone, pipe("", **SMALL).images) > 1e-3


@pytest.fixture
def compilations():
    """Names of the programs that JAX compiles from here on."""
    compiled = []

    def listen(event, seconds, **details):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(details)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield compiled
    jax.monitoring.unregister_event_duration_listener(listen)


def test_another_request_compiles_nothing(pipe, portraits, compilations):
    first = pipe("a girl", **SMALL, subject_image=portraits[0], seed=1).images
    before = len(compilations)
    with pytest.warns(UserWarning, match="prompt too long"):
        second = pipe(
            "a boy on a bike " * 40,
            **SMALL,
            subject_image=portraits[1],
            subject_scale=0.5,
            guidance_scale=2.0,
            seed=[9],
        ).images
    assert len(compilations) == before
    assert relative(first, second) > 1e-2


def test_neither_true_guidance_nor_callbacks_compile_twice(pipe, subjects, compilations):
    def draw(prompt, scale, seed):
        pipe(
            prompt,
            **SMALL,
            negative_prompt="dark",
            true_cfg_scale=scale,
            subject_image=subjects[0],
            seed=seed,
            callback_on_step_end=lambda *_: None,
        )

    draw("a girl", 2.0, 1)
    before = len(compilations)
    draw("a boy on a bike", 3.0, 2)
    assert len(compilations) == before


def test_the_count_of_compilations_counts(compilations):
    jax.jit(lambda x: x * 3 + 1)(np.arange(17.0, dtype=np.float32))
    assert compilations


def test_freed_encoders_draw_the_same(pipe, tiny_model, monkeypatch):
    """They are read when something is encoded, and nothing of them is left before the steps."""
    free = InstantCharacterPipeline.from_pretrained(tiny_model, "float32", offload_encoders=True)
    read, at_the_steps, load = {}, [], loading.load_component

    def loaded(folder, kind, *rest, **options):
        read.setdefault(kind, []).append(load(folder, kind, *rest, **options))
        return read[kind][-1]

    def held():
        return sum(not x.is_deleted() for x in jax.tree.leaves(read))

    def step(*_):
        at_the_steps.append(held())

    monkeypatch.setattr(loading, "load_component", loaded)
    kwargs = SMALL | {"subject_image": REFERENCE, "negative_prompt": "dark", "true_cfg_scale": 2.0}
    for prompt in ("a girl", "a boy"):
        ours = free(prompt, **kwargs).images
        np.testing.assert_array_equal(ours, pipe(prompt, **kwargs).images)
        assert held() == 0
    free(prompt, **kwargs, callback_on_step_end=step)
    assert {name: len(modules) for name, modules in read.items()} == dict.fromkeys(
        LARGE_ENCODERS, 3
    )
    assert set(at_the_steps) == {0}

    embeds = free.encode_prompt("a boy", max_sequence_length=SMALL["max_sequence_length"])
    unwanted = free.encode_prompt("dark", None, SMALL["max_sequence_length"], triggers=False)
    assert held()
    embeddings = dict(zip(("prompt_embeds", "pooled_prompt_embeds"), embeds, strict=True))
    embeddings |= {f"negative_{k}": v for k, v in zip(embeddings, unwanted, strict=True)}
    again = free(**embeddings, **kwargs | {"negative_prompt": None}).images
    np.testing.assert_array_equal(again, ours)
    assert len(read["t5"]) == 4


def test_output_types(pipe):
    arrays = pipe("a girl", **SMALL | {"output_type": "np"}).images
    assert arrays.shape == (1, 64, 64, 3)
    assert arrays.dtype == np.float32
    assert arrays.min() >= 0
    assert arrays.max() <= 1
    (picture,) = pipe("a girl", **SMALL | {"output_type": "pil"}).images
    assert picture.size == (64, 64)
    np.testing.assert_allclose(np.asarray(picture) / 255, arrays[0], atol=0.5 / 255 + 1e-6)


def test_sigmas_in_place_of_a_number_of_steps(pipe):
    from_steps = pipe("a girl", **SMALL).images
    levels = pipe("a girl", **SMALL, sigmas=[1.0, 0.5]).images
    np.testing.assert_array_equal(from_steps, levels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"height": 100}, "height is 100; it must be a multiple of 16 .* such as 96"),
        ({"width": 0}, "width is 0"),
        ({"width": -16}, "width is -16"),
        ({"height": 16 * 10**8}, "height is 1600000000"),
        ({"height": 64.0}, "height is 64.0; it must be a whole number"),
        ({"num_inference_steps": 2.5}, "num_inference_steps is 2.5"),
        ({"sigmas": 0.5}, "sigmas"),
        ({"sigmas": [1.2, 0.5]}, "must be a list that falls strictly"),
        ({"sigmas": [0.5, 0.0]}, "must be a list that falls strictly"),
        ({"sigmas": []}, "must be a list that falls strictly"),
        ({"seed": None}, "seed None is not"),
        ({"latents": [[0.0]]}, r"latents has shape \[1, 1\]"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"sigmas": [0.5, 0.9]}, "must be a list that falls strictly"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"subject_scale": float("inf")}, "subject_scale is inf"),
        ({"seed": -1}, "seed -1 is not"),
        ({"seed": 2**32}, "seed 4294967296 is not"),
        ({"seed": [1, 2]}, "2 seeds for 1 pictures"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0"),
        ({"max_sequence_length": 513}, "max_sequence_length is 513"),
        ({"prompt": []}, "prompt is an empty list"),
        ({"prompt": 3}, "prompt: expected text, got int"),
        ({"prompt": ["a", "b"], "prompt_2": ["a"] * 3}, "2 prompts and 3 prompts_2"),
        (
            {"prompt": ["a", "b"], "negative_prompt": ["c"] * 3, "true_cfg_scale": 2.0},
            "2 prompts and 3 negatives",
        ),
        ({"negative_prompt": "dark"}, "a negative prompt does nothing at true_cfg_scale 1"),
        ({"negative_prompt_2": ""}, "a negative prompt does nothing at true_cfg_scale 1"),
        ({"negative_subject_scale": 0.0}, "negative_subject_scale does nothing at true_cfg_scale"),
        ({"true_cfg_scale": 2.0}, "true_cfg_scale 2 does nothing without a negative prompt"),
        (
            {"true_cfg_scale": 0.5},
            "true_cfg_scale is 0.5; it must be a finite number of at least 1",
        ),
        ({"subject_scale": -1}, "subject_scale is -1; it must be a finite number of at least 0"),
        (
            {"negative_subject_scale": -0.5, "true_cfg_scale": 2.0},
            "negative_subject_scale is -0.5; it must be a finite number of at least 0",
        ),
        (
            {"prompt_embeds": np.zeros((1, 32, 40)), "pooled_prompt_embeds": np.zeros((1, 32))},
            "prompt and prompt_embeds exclude each other",
        ),
        ({"prompt": ["a", "b"], "subject_image": [REFERENCE] * 3}, "2 prompts and 3 subjects"),
        ({"subject_image": []}, "subject_image is an empty list"),
        ({"subject_image": "nowhere.png"}, "nowhere.png"),
        ({"subject_fit": "crop"}, "subject_fit is 'crop'"),
        ({"output_type": "jpeg"}, "output_type is 'jpeg'"),
        (
            {"latents": np.zeros((1, 5, 16))},
            r"latents has shape \[1, 5, 16\]; expected \[1, 16, 16\]",
        ),
        ({"prompt_embeds": np.zeros((1, 32, 40))}, "go together"),
    ],
)
def test_unusable_arguments(pipe, arguments, message):
    with pytest.raises(ValueError, match=message) as raised:
        pipe(**{"prompt": "a girl", **SMALL, **arguments})
    assert "\n" not in str(raised.value)


def test_numbers_that_are_not_finite_are_no_picture(pipe):
    with pytest.raises(FloatingPointError, match="not finite in float32"):
        pipe("a girl", **SMALL, latents=np.full((1, 16, 16), np.nan))


def test_bfloat16(tiny_model, subjects, pipe):
    half = InstantCharacterPipeline.from_pretrained(tiny_model)
    arguments = SMALL | {"output_type": "np"}
    ours = half("a girl", **arguments, subject_image=REFERENCE).images
    assert relative(ours, pipe("a girl", **arguments, subject_image=REFERENCE).images) < 0.03
