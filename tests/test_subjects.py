"""Several subjects in one picture, and the subject's steps and blocks, as a pipeline's caller."""

from functools import partial

import numpy as np
import pytest
from PIL import Image

from ic_jax import ImageError, SubjectPrompt, sampler
from ic_jax.preprocessing.regions import region_weights
from ic_jax.runner import _jitted
from tests.conftest import TINY
from tests.oracle import relative

SMALL = {
    "height": 64,
    "width": 32,
    "num_inference_steps": 2,
    "max_sequence_length": 32,
    "output_type": "latent",
}


@pytest.fixture(scope="module")
def ana(pipe):
    return pipe.encode_subject(TINY / "reference.png")


@pytest.fixture(scope="module")
def ben(pipe):
    picture = np.asarray(Image.open(TINY / "reference.png").convert("RGB"))
    return pipe.encode_subject(255 - picture)


@pytest.fixture(scope="module")
def draw(pipe):
    """Draws a picture and returns its latents."""
    call = partial(pipe, "a girl", **SMALL)
    return lambda **arguments: np.asarray(call(**arguments).images)


@pytest.fixture(scope="module")
def couple(draw, ana, ben):
    subjects = [SubjectPrompt(ana, 0.5, "top"), SubjectPrompt(ben, region="bottom")]
    return draw(subjects=subjects)


def programs():
    return _jitted(sampler.sample, "cpu")._cache_size()


# What a caller relies on


def test_one_subject_is_a_subject_image(draw, ana):
    expected = draw(subject_image=ana, subject_scale=0.7)
    count = programs()
    for subject in (SubjectPrompt(ana), SubjectPrompt([ana], 0.7, "all")):
        np.testing.assert_array_equal(draw(subjects=[subject], subject_scale=0.7), expected)
    assert programs() == count
    everywhere = SubjectPrompt(ana, 0.7, (0, 0, 1, 1))
    assert relative(draw(subjects=[everywhere]), expected) < 1e-5


def test_regions_hold_and_others_compile_nothing(draw, ana, ben, couple):
    count, plain = programs(), draw(subject_image=ana, subject_scale=0.0)
    mask = np.zeros((8, 4))
    mask[:4] = 1  # the upper half
    turned = [SubjectPrompt(ben, region=(0, 0.5, 1, 1)), SubjectPrompt(ana, 0.5, mask)]
    assert relative(draw(subjects=turned), couple) < 1e-5
    silent = [SubjectPrompt(ana, 0.0, "left"), SubjectPrompt(ben, 0.0, "center")]
    assert relative(draw(subjects=silent), plain) < 1e-5
    other = [SubjectPrompt(ana, 0.5, "bottom"), SubjectPrompt(ben, region="top")]
    assert relative(draw(subjects=other), couple) > 1e-3
    assert programs() <= count + 1  # of `plain`


def test_pictures_of_one_subject_are_fused(draw, ana, ben):
    """The picture twice is the picture once, beside a subject of two other pictures as well."""
    once = draw(subjects=[SubjectPrompt(ana), SubjectPrompt([ana, ben])])
    twice = draw(subjects=[SubjectPrompt([ana, ana]), SubjectPrompt([ben, ana])])
    assert relative(twice, once) < 1e-5
    assert relative(draw(subjects=[SubjectPrompt(ana), SubjectPrompt([ana, ana])]), once) > 1e-3


def test_lists_pair_up_with_prompts_and_their_pictures(pipe, ana, ben):
    def couple(top, bottom):
        return [SubjectPrompt(top, 0.5, "top"), SubjectPrompt(bottom, region="bottom")]

    lists = [couple(ana, ben), couple(ben, ana)]
    both = pipe(["a girl", "a boy"], **SMALL, subjects=lists, seed=[4, 5]).images
    for n, prompt in enumerate(["a girl", "a boy"]):
        alone = pipe(prompt, **SMALL, subjects=lists[n], seed=4 + n).images
        assert relative(both[n : n + 1], alone) < 1e-5


def test_steps_and_blocks_of_the_subject(pipe, draw, ana):
    latents = {}

    def steps(key, **arguments):
        def keep(_pipe, step, _timestep, values):
            latents[key, step] = np.asarray(values["latents"])

        return draw(callback_on_step_end=keep, **arguments)

    late = {"subject_start": 0.5}
    always, plain = draw(subject_image=ana), draw(subject_image=ana, subject_scale=0.0)
    drawn = steps("late", subject_image=ana, **late)
    steps("plain", subject_image=ana, subject_scale=0.0)
    assert relative(latents["late", 0], latents["plain", 0]) < 1e-5
    assert relative(latents["late", 1], latents["plain", 1]) > 1e-3
    count = programs()
    assert relative(draw(subject_image=ana, **late), drawn) < 1e-5
    blocks = [draw(subject_image=ana, subject_blocks=x) for x in ("double", "single", [0], "all")]
    assert all(relative(x, always) > 1e-4 for x in blocks[:3])
    assert relative(blocks[3], always) == 0
    config = pipe.transformer.config
    numbers = f"0-{config.num_layers + config.num_single_layers - 1}"
    assert relative(draw(subject_image=ana, subject_blocks=numbers), always) == 0
    assert programs() == count
    # Half the scale at both steps: their middles are a quarter of the run from its end and start.
    half = {"subject_start": 0.5, "subject_end": 0.5, "subject_ramp": 0.5}
    ramped = draw(subject_image=ana, subject_scale=0.8, **half)
    assert relative(ramped, draw(subject_image=ana, subject_scale=0.4)) < 1e-5
    assert relative(ramped, plain) > 1e-3


# Regions


@pytest.mark.parametrize(
    ("region", "expected"),
    [
        ("left", [[1, 1, 0, 0]] * 2),
        ("center", [[0, 0.5, 0.5, 0]] * 2),
        ("bottom", [[0] * 4, [1] * 4]),
        ("all", [[1] * 4] * 2),
        ((0.125, 0, 0.5, 0.25), [[0.25, 0.5, 0, 0], [0] * 4]),
        (np.eye(2, dtype=bool), [[1, 1, 0, 0], [0, 0, 1, 1]]),
        (np.eye(2, dtype=np.int64), [[1, 1, 0, 0], [0, 0, 1, 1]]),
        (Image.new("L", (8, 8), 51), [[0.2] * 4] * 2),
    ],
)
def test_weights_of_a_region(region, expected):
    """The share of each token's pixels; a picture of 2 x 4 tokens."""
    weights = region_weights(region, (2, 4)).reshape(2, 4)
    np.testing.assert_allclose(weights, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ("lft", "'lft': there is no such file; check the path; names of regions are all, left,"),
        ((0.5, 0, 0.5, 1), r"region \(0.5, 0, 0.5, 1\) is no box"),
        ((0, 0, 96, 96), "each from 0 to 1, such as"),
        ((0, 0, 1), "is no box"),
        (("a", 0, 1, 1), "is no box"),
        (np.zeros((4, 4)), "mask is black, which is nowhere"),
        (np.zeros(4), "a region's mask: the array given has shape"),
        (7, "a region's mask: a picture cannot be a int"),
    ],
)
def test_regions_that_cannot_be_used(region, message):
    with pytest.raises(ValueError, match=message) as raised:
        region_weights(region, (2, 4))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"subjects": []}, "subjects is an empty list"),
        ({"subjects": ["a.png"]}, r"subjects hold a str; give SubjectPrompt\(image, ...\)"),
        (
            {"subjects": [SubjectPrompt("a.png")], "subject_image": "b.png"},
            "subject_image and subjects exclude each other; give one",
        ),
        (
            {"subjects": [[SubjectPrompt("a")], [SubjectPrompt("a"), SubjectPrompt("b")]]},
            "the prompts have 1 and 2 subjects; give as many to each",
        ),
        ({"subjects": [SubjectPrompt([])]}, "a subject's image is an empty list"),
        ({"subject_start": 1.5}, "subject_start is 1.5; it must be a number from 0 to 1"),
        ({"subject_start": 0.6, "subject_end": 0.5}, "subject_start 0.6 is after subject_end 0.5"),
        ({"subject_ramp": float("nan")}, "subject_ramp is nan; it must be a finite number"),
        ({"subject_blocks": "most"}, "subject_blocks is 'most'; it must be 'all', 'double', "),
        ({"subject_blocks": []}, r"subject_blocks is \[\]; it must be"),
        ({"subject_blocks": [-1]}, r"subject_blocks is \[-1\]; it must be"),
        ({"subject_blocks": 3}, "subject_blocks is 3; it must be"),
    ],
)
def test_arguments_that_cannot_be_used(pipe, arguments, message):
    with pytest.raises(ValueError, match=message) as raised:
        pipe("a girl", **SMALL, **arguments)
    assert "\n" not in str(raised.value)


def test_subjects_that_cannot_be_used(draw, ana, ben):
    with pytest.raises(ValueError, match="a subject's scale is -1; it must be a finite number of"):
        SubjectPrompt(ana, -1)
    many = [SubjectPrompt([ana] * 3), SubjectPrompt([ben] * 5)]
    with pytest.raises(ValueError, match="subjects of 3 and 5 pictures would take 15 pictures"):
        draw(subjects=many)
    with pytest.raises(ValueError, match="subject_blocks names block 99; this model's are 0 to"):
        draw(subject_image=ana, subject_blocks="0,99")
    with pytest.raises(ValueError, match="leave the subject none of 2 steps; take a wider range"):
        draw(subject_image=ana, subject_start=0.1, subject_end=0.2)
    with pytest.raises(ImageError, match="a region's mask: 'lft': there is no such file"):
        draw(subjects=[SubjectPrompt(ana, region="lft")])
