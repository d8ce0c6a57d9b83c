"""Batch plans: every target once per epoch, pairs of two records, the same from any step on."""

import hashlib
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from train.data import stream
from train.data.batch_plan import BatchPlan
from train.data.buckets import buckets, covering_size, nearest_bucket
from train.data.characters import held_out
from train.data.errors import DataError
from train.data.hashing import hash64, hash_names, permutation, splitmix64

DIGESTS = {0.0: "3a178ca93608d8b8", 0.3: "077e15a46c7406e5", 1.0: "9db6b600ae4eeb39"}


class Index(SimpleNamespace):
    """Index of a data set without records, which plans do not read."""

    def __len__(self) -> int:
        return len(self.character)


def drawn_index(records: int = 500, characters: int = 150, seed: int = 0) -> Index:
    rng = np.random.default_rng(seed)
    shapes = np.array([(512, 512), (512, 768), (768, 512), (1024, 512), (600, 700)], np.int32)
    shape = shapes[rng.choice(5, records, p=[0.5, 0.2, 0.2, 0.02, 0.08])]
    character = rng.integers(0, characters, records).astype(np.int32)
    character[:characters] = np.arange(characters)  # none without a picture
    return Index(
        path="data",
        character=character,
        width=shape[:, 0],
        height=shape[:, 1],
        others=np.empty((0, 2), np.int32),
        character_hash=hash_names([f"c{n}" for n in range(characters)]),
    )


@pytest.fixture(params=[0.0, 0.3, 1.0])
def paired(request) -> float:
    return request.param


@pytest.fixture
def index() -> Index:
    return drawn_index()


def make_plan(index: Index, paired: float, **changes) -> BatchPlan:
    return BatchPlan(
        index, **({"batch": 16, "resolution": 512, "seed": 3} | changes), paired=paired
    )


def equal(a, b) -> None:
    assert a.size == b.size
    for x, y in zip(a[1:], b[1:], strict=True):
        np.testing.assert_array_equal(x, y)


def test_same_from_any_step_on_and_in_any_order(index, paired):
    first, second = make_plan(index, paired), make_plan(index, paired)
    forwards = [first.rows(step) for step in range(60)]
    for step in reversed(range(60)):
        equal(second.rows(step), forwards[step])
    equal(make_plan(index, paired).rows(1000), first.rows(1000))
    different = make_plan(index, paired, seed=4).rows(0)
    assert (different.target != forwards[0].target).any()


def test_the_order_is_that_of_earlier_versions(index, paired):
    """So that a run which an earlier version began goes on with the samples that it had left."""
    plan, digest = make_plan(index, paired), hashlib.sha256()
    for step in (0, 1, 7, 50, 1_000_000):
        rows = plan.rows(step)
        digest.update(repr(rows.size).encode())
        for values in (rows.target, rows.reference, rows.paired, rows.epoch, rows.seed):
            digest.update(values.astype(np.uint64).tobytes())
    assert digest.hexdigest()[:16] == DIGESTS[paired]


def test_the_order_does_not_depend_on_the_batch(index, paired):
    """Batches of 8 are those of 16 in halves, and the same from a far step on."""
    index.width[:], index.height[:] = 512, 512  # one bucket; with several, each has its order
    small, large = (make_plan(index, paired, batch=batch) for batch in (8, 16))
    for step in (0, 1, 40, 500_000):
        rows, halves = large.rows(step), [small.rows(2 * step + half) for half in (0, 1)]
        for name in ("target", "reference", "paired", "epoch", "seed"):
            joined = np.concatenate([getattr(half, name) for half in halves])
            np.testing.assert_array_equal(joined, getattr(rows, name))


@pytest.mark.parametrize("n", [0, 1, 5, 70_000])
def test_a_permutation_is_that_of_a_stable_sort(n):
    seed = hash64("seed", n)
    expected = np.argsort(splitmix64(seed, np.arange(n)), kind="stable")
    np.testing.assert_array_equal(permutation(seed, n), expected)


def test_every_target_once_per_epoch(index, paired):
    """No target twice in an epoch; every epoch is complete, except the newest ones."""
    plan = make_plan(index, paired)
    seen: Counter = Counter()
    for step in range(400):
        rows = plan.rows(step)
        assert len(rows.target) == 16
        seen.update(
            zip(rows.paired.tolist(), rows.epoch.tolist(), rows.target.tolist(), strict=True)
        )
    assert max(seen.values()) == 1
    for kind, targets in ((False, plan.targets), (True, plan.pairs)):
        epochs = Counter(epoch for is_pair, epoch, _ in seen if is_pair == kind)
        if not epochs:
            assert paired == (0.0 if kind else 1.0)
            continue
        assert all(epochs[epoch] == targets for epoch in range(max(epochs) - 2))


def test_nothing_is_left_out_of_the_sequence(index):
    """The steps so far hold every target of the sequence except an unfinished batch per bucket."""
    plan = make_plan(index, 0.0)
    total = sum(len(plan.rows(step).target) for step in range(200))
    newest = max(plan.rows(199).epoch)
    assert total >= newest * plan.targets - len(plan.sizes) * 16


def test_pairs(index):
    plan = make_plan(index, 1.0)
    drawn = {}
    for step in range(200):
        rows = plan.rows(step)
        assert rows.paired.all()
        assert (rows.target != rows.reference).all()
        same = index.character[rows.target] == index.character[rows.reference]
        assert same.all()
        for target, reference in zip(rows.target.tolist(), rows.reference.tolist(), strict=True):
            drawn.setdefault(target, set()).add(reference)
    views = np.bincount(index.character)
    many = [t for t in drawn if views[index.character[t]] >= 5]
    assert np.mean([len(drawn[t]) for t in many]) > 2.5  # anew every epoch


def test_unpaired_are_their_own_reference_and_shares_hold(index):
    plan = make_plan(index, 0.3)
    rows = [plan.rows(step) for step in range(300)]
    paired = np.concatenate([r.paired for r in rows])
    target = np.concatenate([r.target for r in rows])
    reference = np.concatenate([r.reference for r in rows])
    np.testing.assert_array_equal(target == reference, ~paired)
    assert abs(paired.mean() - 0.3) < 0.01
    assert any(0 < r.paired.sum() < 16 for r in rows[:3])  # mixed within a batch
    seeds = np.concatenate([r.seed for r in rows])
    assert len(np.unique(seeds)) == len(seeds)


def test_one_bucket_a_batch_and_few_are_joined(index):
    plan = make_plan(index, 0.0)
    sizes = set(plan.sizes)
    assert (512, 512) in sizes
    assert (352, 720) not in sizes  # 1:2, 2% of the pictures: 10, less than a batch
    bucket = nearest_bucket(index.width, index.height, plan.sizes)
    for step in range(50):
        rows = plan.rows(step)
        assert {plan.sizes[b] for b in bucket[rows.target]} == {rows.size}
    assert len(make_plan(index, 0.0, batch=1000).sizes) == 1
    assert len(np.unique(make_plan(index, 0.0, batch=1000).rows(0).target)) == 500


def test_blocks_of_counts_do_not_show(index, paired, monkeypatch):
    expected = [make_plan(index, paired).rows(step) for step in (0, 7, 40, 99)]
    monkeypatch.setattr(stream, "_BLOCK", 7)
    plan = make_plan(index, paired)
    for step, rows in zip((0, 7, 40, 99), expected, strict=True):
        equal(plan.rows(step), rows)


def test_buckets():
    for resolution in (64, 256, 512, 1024):
        sizes = buckets(resolution)
        assert all(h % 16 == 0 and w % 16 == 0 for h, w in sizes)
        assert all(0.8 < h * w / resolution**2 < 1.2 for h, w in sizes)
        assert (resolution, resolution) in sizes
    sizes = buckets(512)
    chosen = nearest_bucket(np.array([100, 100, 300, 5]), np.array([100, 200, 100, 500]), sizes)
    assert [sizes[b] for b in chosen] == [(512, 512), sizes[-1], sizes[0], sizes[-1]]
    assert covering_size(1000, 1000, 512) == (512, 512)
    assert covering_size(512, 300, 512) == (512, 300)  # never larger
    width, height = covering_size(3000, 2000, 512)
    assert (width, height) == (630, 420) or min(width / 624, height / 416) >= 1


@pytest.mark.parametrize("resolution", [0, -16, 100])
def test_wrong_resolution(resolution):
    with pytest.raises(ValueError, match="multiple of 16"):
        buckets(resolution)


def test_held_out_characters_stay_out(index):
    held = held_out(index, share=0.2)
    assert 0.1 < held.mean() < 0.3
    again = held_out(drawn_index(seed=9), share=0.2)
    np.testing.assert_array_equal(again, held)  # by the id alone
    training, evaluation = (make_plan(index, 0.5, characters=who) for who in (~held, held))
    for step in range(100):
        for plan, inside in ((training, False), (evaluation, True)):
            rows = plan.rows(step)
            for records in (rows.target, rows.reference):
                assert (held[index.character[records]] == inside).all()


def test_what_cannot_be_planned(index):
    with pytest.raises(DataError, match="no picture is left"):
        make_plan(index, 0.0, characters=np.zeros(150, bool))
    index.character = np.arange(500, dtype=np.int32)
    with pytest.raises(DataError, match="no pairs"):
        make_plan(index, 0.5)
    for settings in ({"batch": 0}, {"paired": 1.5}):
        with pytest.raises(ValueError, match="must be at least 1"):
            make_plan(index, **({"paired": 0.0} | settings))
