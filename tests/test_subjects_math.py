"""Several subjects of a picture in closed form: regions, scales, steps, blocks; meshes; forms."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ic_jax import SubjectPrompt, flow, make_mesh, sampler, shardings
from ic_jax.config import AdapterConfig, FluxConfig
from ic_jax.models import image_prompt, layers
from ic_jax.models.attention import attention as named_attention
from ic_jax.models.features import SubjectFeatures
from ic_jax.models.image_prompt import BlockFactors, ImagePrompt, ImagePromptAttention
from ic_jax.models.rope import rope_table
from ic_jax.models.target import compiling_for
from ic_jax.models.unstacked import drawing_form
from ic_jax.preprocessing.arguments import SamplingArguments
from ic_jax.sharding import parse
from ic_jax.subjects import EncodedSubjects, subject_of_request
from ic_jax.weights import loading
from tests import toy
from tests.oracle import relative

FLUX = FluxConfig(**(toy.FLUX.to_dict() | {"num_single_layers": 2}))
ADAPTER = AdapterConfig(**(toy.CONFIGS["adapter"].to_dict() | {"output_dim": 6}))
HEADS, D = FLUX.num_attention_heads, FLUX.attention_head_dim
ROWS, SUBJECTS, IMAGE, TEXT = 4, 3, 6, 2  # of two groups of subjects; image and text tokens


def random(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.fixture(scope="module")
def attention():
    with layers.shapes_only():
        module = ImagePromptAttention(ADAPTER, FLUX, rngs=nnx.Rngs(0))
    for i, variable in enumerate(
        jax.tree.leaves(module, is_leaf=lambda x: isinstance(x, nnx.Variable))
    ):
        variable.set_value(jnp.asarray(random(i, *variable.shape)))
    return module


TOKENS = random(20, 2, SUBJECTS, 5, 6)  # u k m c
SCALE = np.random.default_rng(21).uniform(0, 2, (ROWS, SUBJECTS)).astype(np.float32)
REGIONS = np.random.default_rng(22).uniform(0, 1, (ROWS, SUBJECTS, IMAGE)).astype(np.float32)


def softmax_values(attention, q, tokens, scale):
    """softmax(q' k'^T / sqrt(d)) (scale v) of one row: q [h, n, d], tokens [m, c], scale [m]."""

    def norm(x, module):
        rms = np.sqrt(np.square(x).mean(-1, keepdims=True))
        return x / (rms + 1e-6) * np.asarray(module.scale[...])

    def project(linear):
        y = tokens @ np.asarray(linear.kernel[...]) + np.asarray(linear.bias[...])
        return y.reshape(-1, HEADS, D).swapaxes(0, 1)

    k, v = norm(project(attention.to_k_ip), attention.norm_ip_k), project(attention.to_v_ip)
    scores = norm(q, attention.norm_ip_q) @ k.swapaxes(1, 2) / D**0.5
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ (scale[:, None] * v)


def expected_change(attention, q, regions):
    """What the subjects add to the image tokens of the queries q [b, h, n, d]."""
    rows = []
    for row, queries in enumerate(q):
        tokens = TOKENS[row // 2]
        if regions is None:
            scale, together = np.repeat(SCALE[row], 5), tokens.reshape(-1, 6)
            rows.append(softmax_values(attention, queries, together, scale))
            continue
        each = [
            SCALE[row, k] * regions[row, k][:, None] * softmax_values(attention, queries, x, ONES)
            for k, x in enumerate(tokens)
        ]
        rows.append(sum(each))
    return np.stack(rows)


ONES = np.ones(5, np.float32)


def check_block(attention, regions, platform):
    """A block's change, with text tokens and without, in a platform's order of axes."""
    stream = random(23, ROWS, HEADS, TEXT + IMAGE, D)
    out = random(24, *stream.shape)
    change = expected_change(attention, stream[:, :, TEXT:], regions)
    prompt = ImagePrompt(attention, jnp.asarray(TOKENS), jnp.asarray(SCALE), regions)

    def in_order(x):
        return jnp.asarray(x.swapaxes(1, 2) if platform == "gpu" else x)

    with compiling_for(platform):
        add = jax.jit(prompt.block(attention, jnp.float32(0.5)), static_argnums=2)
        joint = add(in_order(out), in_order(stream), TEXT)
        image = add(in_order(out[:, :, TEXT:]), in_order(stream[:, :, TEXT:]), 0)
    total = out + np.pad(0.5 * change, ((0, 0), (0, 0), (TEXT, 0), (0, 0)))
    np.testing.assert_allclose(in_order(joint), total, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(in_order(image), total[:, :, TEXT:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("platform", ["cpu", "tpu", "gpu"])
@pytest.mark.parametrize("regions", [None, REGIONS], ids=["together", "regions"])
def test_subjects_in_closed_form(attention, regions, platform):
    check_block(attention, regions, platform)


@pytest.mark.parametrize("mesh", ["data=2,tensor=2", "context=2"])
def test_subjects_in_closed_form_on_a_mesh(attention, mesh):
    """Of two devices along an axis of tokens, each has its share of the text before its image."""
    mesh = make_mesh(parse(mesh), jax.devices()[: math.prod(parse(mesh).values())])
    image = expected_change(attention, random(25, ROWS, HEADS, IMAGE, D), REGIONS)
    q, out = random(25, ROWS, HEADS, IMAGE, D), random(26, ROWS, HEADS, IMAGE, D)
    prompt = ImagePrompt(attention, jnp.asarray(TOKENS), jnp.asarray(SCALE), REGIONS)
    with jax.set_mesh(mesh):
        joint = []
        for platform in ("cpu", "tpu"):
            with compiling_for(platform):
                add = jax.jit(prompt.block(attention), static_argnums=2)
                np.testing.assert_allclose(add(out, q, 0), out + image, rtol=1e-4, atol=1e-4)
                stream = [random(n, ROWS, HEADS, TEXT + IMAGE, D) for n in (27, 28)]
                joint.append(add(*stream, TEXT))
    np.testing.assert_allclose(*joint, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["xla", "blocked", "cudnn"])
def test_subjects_on_a_named_backend(attention, backend, monkeypatch):
    """The axis of the subjects is one of rows: every backend takes it. cuDNN's code runs as XLA."""
    if backend == "cudnn":
        monkeypatch.setattr(jax.nn, "dot_product_attention", _dot_product_by_xla)
    attend = partial(named_attention, backend=backend, heads_first=True)
    monkeypatch.setattr(image_prompt, "attend", lambda q, k, v, split: attend(q, k, v, split=split))
    check_block(attention, REGIONS, "cpu")


def _dot_product_by_xla(q, k, v, *, implementation, **lengths):
    return _real_dot_product(q, k, v, implementation="xla", **lengths)


_real_dot_product = jax.nn.dot_product_attention


# The whole model


@pytest.fixture(scope="module")
def models():
    def component(seed, kind, *configs):
        rng = np.random.default_rng(seed)

        def values(x):
            fan_in = x.shape[-2] if x.ndim > 1 else 1
            return jnp.asarray(rng.standard_normal(x.shape, np.float32) / math.sqrt(fan_in))

        return jax.tree.map(values, loading.abstract(kind, *configs))

    adapter = AdapterConfig(**(toy.CONFIGS["adapter"].to_dict() | {"output_dim": 32}))
    return component(0, "transformer", FLUX), component(1, "adapter", adapter, FLUX)


def request(subject):
    """Two pictures of 4 x 4 tokens, with a reference of 2 x 4 and true guidance, in two steps."""
    text = sampler.TextEmbeddings(random(1, 2, 8, 16), random(2, 2, 16))
    return sampler.SamplingRequest(
        latents=random(3, 2, 16, 8),
        prompt=text,
        guidance_scale=np.full(2, 3.5, np.float32),
        sigmas=np.array([1.0, 0.6, 0.0], np.float32),
        rope=rope_table(flow.position_ids(8, 4, 4, (2, 4)), FLUX),
        subject=subject,
        true_cfg=sampler.TrueCfg(text, np.full(2, 2.0, np.float32), 0.25 * subject.scale),
        reference=random(4, 2, 8, 8),
    )


def features(count):
    return SubjectFeatures(*(random(n, count, n * 4, 32) for n in (1, 3, 4)))


FACTORS = {
    "step_factors": np.float32([1, 0.5]),
    "block_factors": BlockFactors(np.float32([0.5]), np.float32([1, 0])),
}
PICTURES = np.array([[[0, 1], [2, 2]], [[3, 3], [0, 1]]], np.int32)  # of two subjects each
SCALES = np.float32([[0.5, 1], [0.8, 0.3]])


def of_two(regions):
    return sampler.Subject(features(4), SCALES, PICTURES, regions, **FACTORS)


WEIGHTS = np.random.default_rng(5).uniform(0, 1, (2, 2, 24)).astype(np.float32)


def test_unstacked_blocks_give_the_same_velocity(models):
    r = request(of_two(WEIGHTS))
    rope = rope_table(flow.position_ids(8, 4, 4, (2, 4)), FLUX)
    inputs = random(6, 2, 24, 8), *r.prompt, np.full(2, 0.5, np.float32), r.guidance_scale, rope
    tokens, velocities = random(7, 2, 2, 5, 32), []
    for platform in ("cpu", "gpu"):
        flux, adapter = jax.tree.map(jnp.copy, models)
        if platform == "gpu":
            flux, adapter = drawing_form(flux, adapter, platform)
        prompt = ImagePrompt(adapter.ip_adapter, tokens, SCALES, WEIGHTS, FACTORS["block_factors"])
        with compiling_for(platform):
            run = jax.jit(lambda flux, *x: flux(*x))
            velocities.append(run(flux, *jax.tree.map(jnp.asarray, inputs), prompt))
    assert relative(*velocities) < 1e-5


@pytest.mark.parametrize("regions", [WEIGHTS, None], ids=["regions", "together"])
@pytest.mark.slow  # compiles the sampler for a mesh
def test_a_mesh_draws_the_same(models, regions):
    """With true guidance and a reference."""
    expected = jax.jit(sampler.sample)(*models, request(of_two(regions)))
    mesh = make_mesh(parse("data=2,context=2"))
    sharded = jax.device_put(models, shardings(models, mesh))
    with jax.set_mesh(mesh):
        ours = jax.jit(lambda *x: sampler.sample(*x))(*sharded, request(of_two(regions)))
    assert relative(ours, expected) < 1e-5


def test_scales_and_weights_of_every_picture():
    """A subject's own scale is lowered in the negative prediction as the call's is."""
    one, two = SubjectPrompt(None, 0.5, "left"), SubjectPrompt(None)
    encoded = EncodedSubjects(features(4), [[one, two], [two, one]], PICTURES)
    args = SamplingArguments(
        height=64,
        width=64,
        num_inference_steps=4,
        sigmas=None,
        guidance_scale=3.5,
        true_cfg_scale=2,
        num_images_per_prompt=2,
        subject_scale=0.8,
        negative_subject_scale=0.2,
        subject_fit="pad",
        max_sequence_length=32,
        output_type="pil",
        subject_start=0.5,
        subject_ramp=0.5,
        subject_blocks=[0, 2],
    )
    subject, negative = subject_of_request(
        encoded, args, FLUX, pictures=4, steps=4, grid=(1, 2), reference_tokens=1
    )
    np.testing.assert_allclose(subject.scale, [[0.5, 0.8]] * 2 + [[0.8, 0.5]] * 2)
    np.testing.assert_allclose(negative, subject.scale / 4)
    left, everywhere = [1, 0, 0], [1, 1, 1]  # the last token is the reference's
    np.testing.assert_array_equal(
        subject.regions, [[left, everywhere]] * 2 + [[everywhere, left]] * 2
    )
    np.testing.assert_allclose(subject.step_factors, [0.25, 0.75, 1, 1])
    np.testing.assert_array_equal(np.concatenate(subject.block_factors), [1, 0, 1])
