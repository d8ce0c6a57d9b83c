"""Several pictures of one call of the pipeline equal single calls."""

import numpy as np
import pytest

from tests.conftest import SMALL
from tests.oracle import relative


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
