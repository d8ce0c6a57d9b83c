"""Sampler, guidance, image-prompt attention and LoRA in closed form.

Each needs no compiled model, so that a wrong sign or order shows within a second.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ic_jax import sampler
from ic_jax.config import AdapterConfig, SchedulerConfig
from ic_jax.models import layers
from ic_jax.models.adapter import Adapter
from ic_jax.models.features import SubjectFeatures
from ic_jax.models.flux import Flux, Modulation
from ic_jax.models.image_prompt import ImagePrompt, ImagePromptAttention
from ic_jax.models.low_rank import LoraLayer
from ic_jax.models.rope import Rope
from tests import toy


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


class LinearFlux(Flux):
    """A model whose velocity is latents + the first text token + the modulation's first vector."""

    def __init__(self):
        pass

    def denoise(self, latents, txt, modulation, rope, image_prompt=None, *, remat="none"):
        return latents + txt[:, :1] + modulation.out[:, :1]

    def embed_text(self, prompt_embeds):
        return 2 * prompt_embeds

    def modulation(self, t, guidance, pooled):
        out = jnp.stack([t, guidance, pooled[:, 0]], axis=-1)[:, None]
        rows = jnp.repeat(out, 6, axis=1)[None]
        return Modulation(rows, rows, rows[:, :, :3], out.repeat(2, axis=1))


def conditioning(rows, true_cfg, reference=None):
    out = draw(1, 3, rows, 2, 4)
    empty = jnp.zeros((3, 1, rows, 6, 4))
    steps = sampler.Steps(
        sigma=jnp.float32([1.0, 0.6, 0.25]),
        next_sigma=jnp.float32([0.6, 0.25, 0.0]),
        modulation=Modulation(empty, empty, empty[:, :, :, :3], out),
        subject_tokens=None,
    )
    table = Rope(jnp.zeros((8, 2)), jnp.zeros((8, 2)))
    scale = jnp.zeros(rows)
    return sampler.Conditioning(draw(2, rows, 5, 4), steps, table, scale, true_cfg, reference)


@pytest.mark.parametrize("index", range(3))
def test_an_euler_step(index):
    c, x = conditioning(2, None), draw(0, 2, 3, 4)
    velocity = x + c.text[:, :1] + c.steps.modulation.out[index, :, :1]
    change = float(c.steps.next_sigma[index] - c.steps.sigma[index])
    after = sampler.step(LinearFlux(), None, c, x, jnp.int32(index))
    np.testing.assert_allclose(after, x + change * velocity, rtol=1e-5, atol=1e-6)


def test_a_references_tokens_follow_the_pictures_and_have_no_velocity():
    c, x = conditioning(2, None, draw(8, 2, 5, 4)), draw(0, 2, 3, 4)
    without = sampler.step(LinearFlux(), None, c._replace(reference=None), x, jnp.int32(0))
    after = sampler.step(LinearFlux(), None, c, x, jnp.int32(0))
    np.testing.assert_allclose(after, without, rtol=1e-6)


def test_true_guidance_of_a_step():
    """v_negative + scale (v - v_negative); a picture's rows are negative, then positive."""
    scales, x = jnp.float32([2.5, 0.5]), draw(0, 2, 3, 4)
    c = conditioning(4, scales)
    rows = c.text[:, :1] + c.steps.modulation.out[1, :, :1]
    negative, positive = x + rows[0::2], x + rows[1::2]
    velocity = negative + scales[:, None, None] * (positive - negative)
    after = sampler.step(LinearFlux(), None, c, x, jnp.int32(1))
    np.testing.assert_allclose(after, x + (0.25 - 0.6) * velocity, rtol=1e-4, atol=1e-5)


class Timed(Adapter):
    """An adapter whose subject tokens are the features plus the timestep."""

    def __init__(self):
        pass

    @property
    def image_proj(self):
        return self

    def gather(self, features):
        return features.low_res_deep

    def resample(self, gathered, timestep):
        return gathered + timestep[:, None, None]


def test_what_is_prepared_for_the_steps():
    """Times, guidance and text of every step and row; with true guidance, negative rows first."""
    sigmas = jnp.float32([1.0, 0.75, 0.25, 0.0])
    guidance, rope = jnp.float32([3.5, 1.0]), Rope(jnp.zeros((8, 2)), jnp.zeros((8, 2)))
    prompt, negative = (sampler.TextEmbeddings(draw(i, 2, 5, 4), draw(i + 1, 2, 4)) for i in (0, 2))
    features = SubjectFeatures(draw(4, 1, 2, 3), draw(5, 1, 6, 3), draw(6, 1, 8, 3))
    subject = sampler.Subject(features, jnp.float32([0.8, 0.9]))
    plain = sampler.SamplingRequest(draw(7, 2, 3, 4), prompt, guidance, sigmas, rope, subject)
    cfg = sampler.TrueCfg(negative, jnp.float32([2.0, 3.0]), jnp.float32([0.1, 0.2]))
    for request in (plain, plain._replace(true_cfg=cfg)):
        c = sampler.prepare(LinearFlux(), Timed(), request)
        np.testing.assert_array_equal(c.steps.sigma, sigmas[:3])
        np.testing.assert_array_equal(c.steps.next_sigma, sigmas[1:])
        rows, scales, scale = prompt, guidance, [0.8, 0.9]
        if request.true_cfg is not None:
            pairs = zip(negative, prompt, strict=True)
            both = (jnp.stack(pair, axis=1).reshape(4, *pair[0].shape[1:]) for pair in pairs)
            rows, scales, scale = (
                sampler.TextEmbeddings(*both),
                guidance.repeat(2),
                [0.1, 0.8, 0.2, 0.9],
            )
        np.testing.assert_array_equal(c.text, 2 * rows.embeds)
        np.testing.assert_allclose(c.subject_scale, scale)
        for s in range(3):
            at = c.steps.modulation.out[s]
            t = jnp.full(len(scales), sigmas[s])
            expected = jnp.stack([t, scales, rows.pooled[:, 0]], axis=-1)
            np.testing.assert_array_equal(at[:, 0], expected)
            np.testing.assert_array_equal(c.steps.modulation.img[s, 0, :, 0], expected)
            tokens = features.low_res_deep + 1000 * sigmas[s]
            np.testing.assert_allclose(c.steps.subject_tokens[s], tokens, rtol=1e-6)


def test_noise_is_of_each_pictures_seed():
    seeds = jnp.uint32([3, 7])
    both = sampler.noise(seeds, 4, 6, 2)
    for i in range(2):
        alone = sampler.noise(seeds[i : i + 1], 4, 6, 2)[0]
        np.testing.assert_array_equal(both[i], alone)
        drawn = jax.random.normal(jax.random.key(seeds[i]), (4, 6, 2))
        np.testing.assert_array_equal(alone, drawn)


def test_the_published_schedule_settings():
    """FLUX.1-dev's scheduler_config.json."""
    c = SchedulerConfig()
    assert (c.base_shift, c.max_shift, c.shift) == (0.5, 1.15, 3.0)
    assert (c.base_image_seq_len, c.max_image_seq_len) == (256, 4096)
    assert c.use_dynamic_shifting


def test_a_lora_adds_scale_times_b_a():
    a, b, bias, x = draw(0, 5, 2), draw(1, 2, 3), draw(2, 3), draw(3, 4, 5)
    for given in (None, bias):
        layer = LoraLayer(a, b, given, axes=("embed", "heads"), scale=0.25)
        expected = 0.25 * (x @ a @ b + (0 if given is None else given[None]))
        np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_image_prompt_attention_in_closed_form():
    """softmax(q' k'^T / sqrt(d)) v of the image tokens, times the scale; two rows a subject."""
    adapter = AdapterConfig(**(toy.CONFIGS["adapter"].to_dict() | {"output_dim": 6}))
    flux = toy.FLUX
    with layers.shapes_only():
        attention = ImagePromptAttention(adapter, flux, rngs=nnx.Rngs(0))
    heads, d = flux.num_attention_heads, flux.attention_head_dim
    for i, variable in enumerate(
        jax.tree.leaves(attention, is_leaf=lambda x: isinstance(x, nnx.Variable))
    ):
        variable.set_value(draw(i, *variable.shape))
    tokens, q, out = draw(20, 2, 3, 6), draw(21, 4, heads, 5, d), draw(22, 4, heads, 5, d)
    scale, text = jnp.float32([1.0, 0.5, 0.0, 2.0]), 2

    def norm(x, module):
        rms = np.sqrt(np.square(x).mean(-1, keepdims=True))
        return x / (rms + 1e-6) * np.asarray(module.scale[...])

    def project(linear):
        y = np.asarray(tokens) @ np.asarray(linear.kernel[...]) + np.asarray(linear.bias[...])
        return y.reshape(2, 3, heads, d).swapaxes(1, 2).repeat(2, axis=0)

    k, v = norm(project(attention.to_k_ip), attention.norm_ip_k), project(attention.to_v_ip)
    scores = np.einsum("bhnd,bhmd->bhnm", norm(np.asarray(q), attention.norm_ip_q), k) / d**0.5
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    change = np.einsum("bhnm,bhmd->bhnd", weights / weights.sum(-1, keepdims=True), v)
    change = np.asarray(scale)[:, None, None, None] * change
    added = ImagePrompt(attention, tokens, scale).block(attention)
    np.testing.assert_allclose(added(out, q, 0), out + change, rtol=1e-4, atol=1e-4)
    change[:, :, :text] = 0
    np.testing.assert_allclose(added(out, q, text), out + change, rtol=1e-4, atol=1e-4)
