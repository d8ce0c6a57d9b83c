"""Sampler, guidance, sharding, data order and the reference effect in closed form.

Each needs no compiled model, so that a wrong sign or order shows within a second.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ic_jax import sampler
from ic_jax.config import SchedulerConfig
from ic_jax.models.features import SubjectFeatures
from ic_jax.models.flux import Flux, Modulation
from ic_jax.models.low_rank import LoraLayer
from ic_jax.models.rope import Rope
from ic_jax.sharding import (
    RULES,
    activation_spec,
    global_from_local_rows,
    local_rows,
    make_mesh,
    parse,
)
from tests.test_oracles_step import some_examples
from train import effect
from train.data.characters import PairIndex
from train.data.hashing import permutation, splitmix64


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


class LinearFlux(Flux):
    """A model whose velocity is latents + the first text token + the modulation's first vector."""

    def __init__(self):
        pass

    def denoise(self, latents, txt, modulation, rope, image_prompt=None, *, remat="none"):
        return latents + txt[:, :1] + modulation.out[:, :1]


def conditioning(rows, true_cfg):
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
    return sampler.Conditioning(draw(2, rows, 5, 4), steps, table, scale, true_cfg)


@pytest.mark.parametrize("index", range(3))
def test_an_euler_step(index):
    c, x = conditioning(2, None), draw(0, 2, 3, 4)
    velocity = x + c.text[:, :1] + c.steps.modulation.out[index, :, :1]
    change = float(c.steps.next_sigma[index] - c.steps.sigma[index])
    after = sampler.step(LinearFlux(), None, c, x, jnp.int32(index))
    np.testing.assert_allclose(after, x + change * velocity, rtol=1e-5, atol=1e-6)


def test_true_guidance_of_a_step():
    """v_negative + scale (v - v_negative); a picture's rows are negative, then positive."""
    scales, x = jnp.float32([2.5, 0.5]), draw(0, 2, 3, 4)
    c = conditioning(4, scales)
    rows = c.text[:, :1] + c.steps.modulation.out[1, :, :1]
    negative, positive = x + rows[0::2], x + rows[1::2]
    velocity = negative + scales[:, None, None] * (positive - negative)
    after = sampler.step(LinearFlux(), None, c, x, jnp.int32(1))
    np.testing.assert_allclose(after, x + (0.25 - 0.6) * velocity, rtol=1e-4, atol=1e-5)


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


def test_axes_lie_on_the_documented_mesh_axes():
    """docs/sharding.md: data and fsdp shard rows, tensor shards heads and hidden channels."""
    assert RULES["batch"] == ("data", "fsdp")
    assert RULES["embed"] == ("fsdp",)
    assert RULES["heads"] == RULES["mlp"] == ("tensor",)
    assert RULES["tokens"] == ("context",)
    assert set(RULES["width"]) == {"fsdp", "tensor", "context"}
    mesh = make_mesh(parse("data=2,fsdp=2,tensor=2")).abstract_mesh
    spec = activation_spec(mesh, (8, 3, 6), ("batch", "tokens", "heads"))
    assert spec == P(("data", "fsdp"), "context", "tensor")
    uneven = activation_spec(mesh, (2, 3, 5), ("batch", None, "heads"))
    assert uneven == P("data", None, None)  # what does not divide is left out


@pytest.mark.parametrize("text", ["data=4", "data=2,fsdp=2", "fsdp=2,tensor=2", "context=4"])
def test_rows_keep_their_order_on_a_mesh(text):
    sharding = NamedSharding(make_mesh(parse(text)), P(RULES["batch"]))
    assert local_rows(sharding, 8) == list(range(8))
    rows = np.arange(24, dtype=np.float32).reshape(8, 3)
    whole = global_from_local_rows(rows, np.arange(8), 8, sharding)
    np.testing.assert_array_equal(whole, rows)


def test_random_bits_are_those_of_splitmix64():
    """The first outputs of the published generator for the seeds 0 and 1234567."""
    first = splitmix64(np.uint64(0), np.arange(3))
    assert [hex(x) for x in first] == [
        "0xe220a8397b1dcdaf",
        "0x6e789e6aa1b965f4",
        "0x6c45d188009454f",
    ]
    other = splitmix64(np.uint64(1234567), np.arange(2))
    assert [int(x) for x in other] == [6457827717110365317, 3203168211198807973]


def test_permutations_are_even():
    orders = np.array([permutation(np.uint64(seed), 6) for seed in range(3000)])
    assert (np.sort(orders, axis=1) == np.arange(6)).all()
    counts = np.array([np.bincount(column, minlength=6) for column in orders.T])
    assert abs(counts - 500).max() < 5 * (500 * 5 / 6) ** 0.5


def test_partners_are_drawn_evenly_from_the_others():
    index = PairIndex(np.array([0, 1, 0, 0, 1, 2, 0]), np.arange(7))
    seeds = splitmix64(np.uint64(5), np.arange(3000))
    partners = index.sample(np.full(3000, 2), seeds)
    counts = np.bincount(partners, minlength=7)
    assert set(np.flatnonzero(counts)) == {0, 3, 6}
    assert abs(counts[[0, 3, 6]] - 1000).max() < 150
    assert (index.sample(np.full(10, 5), seeds[:10]) == 5).all()  # alone


def test_the_wrong_reference_is_another_characters():
    assert effect.other_characters(["a", "a", "b", "c"]).tolist() == [2, 2, 3, 0]
    assert effect.other_characters(["a", "a"]).tolist() == [0, 1]


def test_the_effect_compares_the_same_noise_with_two_references(monkeypatch):
    """The model returns the reference's first feature; the errors follow in closed form."""

    def velocity(adapter, flux, e, rope):
        return jnp.broadcast_to(e.features.low_res_deep[:, :1, :1], e.latents.shape)

    monkeypatch.setattr(effect, "velocity", velocity)
    features = SubjectFeatures(draw(0, 2, 1, 4), draw(1, 2, 3, 4), draw(2, 2, 4, 4))
    e = some_examples()._replace(features=features)
    right, wrong = effect.reference_effect({}, None, e, None, jnp.int32([1, 0]))
    target, deep = np.asarray(e.noise - e.latents), np.asarray(features.low_res_deep)[:, :1, :1]
    np.testing.assert_allclose(right, np.square(deep - target).mean((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(wrong, np.square(deep[::-1] - target).mean((1, 2)), rtol=1e-5)
