"""Streams, sharding, data order and the reference effect in closed form.

Each needs no compiled model, so that a wrong sign or order shows within a second.
"""

import hashlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ic_jax.models import streams
from ic_jax.models.features import SubjectFeatures
from ic_jax.sharding import (
    RULES,
    activation_spec,
    global_from_local_rows,
    local_rows,
    make_mesh,
    parse,
)
from tests.test_oracles_sampler import draw
from tests.test_oracles_step import some_examples
from train import effect
from train.data import loader
from train.data.batch_plan import BatchRows
from train.data.characters import PairIndex, held_out
from train.data.decode import FIGURE, encode_png
from train.data.hashing import hash_names, is_held_out, permutation, splitmix64
from train.data.pictures import CENTRED, MaskedPicture, cut_out
from train.data.records import Record
from train.data.stream import Stream


def test_streams_on_two_shards_and_on_none():
    """Each shard has its share of the text before its share of the image."""
    txt, img = jnp.arange(4.0)[None, :, None], 10 + jnp.arange(6.0)[None, :, None]
    table = jnp.concatenate([txt[0], img[0]])
    plain, sharded = table[:, 0].tolist(), [0, 1, 10, 11, 12, 2, 3, 13, 14, 15]
    for text, order in (("data=1", plain), ("context=2", sharded)):
        with jax.set_mesh(make_mesh(parse(text))):
            joint = streams.concat_streams(txt, img)
            assert joint[0, :, 0].tolist() == order
            for part, whole in zip(streams.split_streams(joint, 4), (txt, img), strict=True):
                np.testing.assert_array_equal(part, whole)
            assert streams.to_stream_order(table, 4)[:, 0].tolist() == order
            changed = streams.add_to_image(joint, jnp.full_like(img, 100))
            assert changed[0, :, 0].tolist() == [x + 100 * (x >= 10) for x in order]


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
    assert len(np.unique(orders, axis=0)) > 690  # of 720, of which 709 are expected
    counts = np.array([np.bincount(column, minlength=6) for column in orders.T])
    assert abs(counts - 500).max() < 5 * (500 * 5 / 6) ** 0.5


def test_every_epoch_is_shuffled_anew():
    stream = Stream((3, "unpaired"), 10 * np.arange(40), np.zeros(40, np.int16), 1)
    epochs = [stream.items(np.arange(40) + 40 * e)[0] for e in range(5)]
    assert all((np.sort(order) == 10 * np.arange(40)).all() for order in epochs)
    assert len({tuple(order) for order in epochs}) == 5
    other = Stream((4, "unpaired"), 10 * np.arange(40), np.zeros(40, np.int16), 1)
    assert (other.items(np.arange(40))[0] != epochs[0]).any()


def test_partners_are_drawn_evenly_from_the_others():
    index = PairIndex(np.array([0, 1, 0, 0, 1, 2, 0]), np.arange(7))
    seeds = splitmix64(np.uint64(5), np.arange(3000))
    partners = index.sample(np.full(3000, 2), seeds)
    counts = np.bincount(partners, minlength=7)
    assert set(np.flatnonzero(counts)) == {0, 3, 6}
    assert abs(counts[[0, 3, 6]] - 1000).max() < 150
    assert (index.sample(np.full(10, 5), seeds[:10]) == 5).all()  # alone


def test_a_hash_of_the_name_holds_a_character_out():
    """The first 8 bytes of SHA-256 of the name's repr, as a number, in both forms."""
    names = [f"c{n}" for n in range(2000)]
    digests = [hashlib.sha256(repr((name,)).encode()).digest() for name in names]
    shares = np.array([int.from_bytes(digest[:8], "little") / 2**64 for digest in digests])
    dataset = SimpleNamespace(character_hash=hash_names(names))
    for share in (0.0, 0.02, 0.5):
        expected = shares < share
        assert [is_held_out(name, share) for name in names] == expected.tolist()
        np.testing.assert_array_equal(held_out(dataset, share), expected)
        assert abs(expected.mean() - share) < 0.05


class Colours:
    """A data set whose record n is a picture of one colour, n times ten."""

    def read(self, n):
        picture = np.full((32, 32, 3), 10 * n, np.uint8)
        return Record(encode_png(picture), b"", f"caption {n}", f"c{n}", "", "", "", 32, 32)


def test_a_sample_has_the_pictures_of_its_records():
    rows = BatchRows(
        (32, 32), np.array([3, 7]), np.array([3, 9]), np.empty((2, 0), int),
        np.array([False, True]), np.zeros(2, int), np.array([1, 2], np.uint64),
    )  # fmt: skip
    plan = SimpleNamespace(rows=lambda step: rows, batch=2, subjects=1)
    read = loader._ReadSample(Colours(), plan, CENTRED, 16, None, 16, None, (0, 1))
    for i, (target, reference) in enumerate(((3, 3), (7, 9))):
        sample = read(i)
        assert (sample["target"] == 10 * target).all()
        assert (sample["low"] == 10 * reference).all()
        assert (sample["high"] == 10 * reference).all()
        assert (sample["caption"], sample["character"]) == (f"caption {target}", f"c{target}")
        assert (sample["record"], sample["reference"]) == (target, reference)


def test_a_soft_mask_lays_the_character_on_white():
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (5, 7, 3), np.uint8)
    mask = rng.integers(FIGURE, 256, (5, 7), np.uint8)
    share = mask[:, :, None] / 255
    expected = np.floor(rgb * share + 255 * (1 - share) + 0.5)
    np.testing.assert_allclose(cut_out(MaskedPicture(rgb, mask)), expected, atol=0)


def test_the_wrong_reference_is_another_characters():
    assert effect.other_characters(["a", "a", "b", "c"]).tolist() == [2, 2, 3, 0]
    assert effect.other_characters(["a", "a"]).tolist() == [0, 1]


def test_the_effect_compares_references_on_the_same_noise(monkeypatch):
    """The model returns the reference's first feature; the errors follow in closed form."""

    def velocity(adapter, flux, e, rope):
        return jnp.broadcast_to(e.features.low_res_deep[:, :1, :1], e.latents.shape)

    monkeypatch.setattr(effect, "velocity", velocity)
    references = SubjectFeatures(draw(0, 2, 2, 1, 4), draw(1, 2, 2, 3, 4), draw(2, 2, 2, 4, 4))
    e = some_examples()
    errors = effect.reference_effect({}, None, e, None, references, jnp.int32([1, 0]))
    deep, target = np.asarray(references.low_res_deep), np.asarray(e.noise - e.latents)
    for ours, feature in zip(errors, (deep[0], deep[1], deep[0, ::-1]), strict=True):
        expected = np.square(feature[:, :1, :1] - target).mean((1, 2))
        np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_the_effect_is_the_rise_with_the_wrong_reference():
    """Rows without another character count nowhere, and those of one picture in no comparison."""
    right, counterpart, wrong = np.array([[1.0, 2, 3, 9], [5, 7, 8, 9], [4, 9, 5, 9]])
    compared, paired = np.array([True, True, True, False]), np.array([False, True, False, False])
    rows = effect.Rows(compared, paired, np.array([True, True, False, True]))
    values = effect.summary(effect.Effect(right, counterpart, wrong), rows)
    assert values[effect.EFFECT] == pytest.approx((3 + 7 + 2) / 3)
    assert values["loss/right reference"] == pytest.approx(2.0)
    assert values["loss/wrong reference"] == pytest.approx(6.0)
    assert values[effect.SAME] == pytest.approx(((4 - 1) + (9 - 7)) / 2)
    assert values[effect.ANOTHER] == pytest.approx(((4 - 5) + (9 - 2)) / 2)
