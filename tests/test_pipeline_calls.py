"""Calls of the pipeline: what its arguments do, are without, and may not be."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from ic_jax import InstantCharacterPipeline
from ic_jax.config import SamplingConfig, SchedulerConfig
from ic_jax.models.flux import Flux
from ic_jax.weights import loading
from ic_jax.weights.encoders import LARGE_ENCODERS
from tests.conftest import REFERENCE, SMALL
from tests.oracle import relative


def test_callback_may_replace_latents(pipe, subjects):
    def to_zero(pipeline, step, timestep, values):
        return {"latents": values["latents"] * 0} if step == 1 else None

    final = pipe("a", **SMALL, subject_image=subjects[0], callback_on_step_end=to_zero).images
    assert not np.asarray(final).any()


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
