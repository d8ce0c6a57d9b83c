"""Scenes of Open Peeps: places of two people, their captions, and chunks of training data."""

import re

import numpy as np

from examples.open_peeps.evaluation import pairs
from examples.open_peeps.world import draw, render, scene_captions, scenes
from examples.open_peeps.world.palette import GROUND
from examples.open_peeps.world.people import held_out, views
from examples.open_peeps.world.render import HEAD_BOX, Identity
from tests.test_peeps import IDENTITY_WORDS

FIRST = Identity("Short", "None", "GlassRound", "tan", "ginger")
SECOND = Identity("Afro", "Full", "None", "dark", "blue")


def test_a_person_alone_is_drawn_as_in_a_picture_of_one():
    view = views(np.random.default_rng(0), 1)[0]
    scene = scenes.alone(FIRST, view)
    alone = scenes.picture(scene, 96).astype(int)
    assert np.abs(alone - render.picture(FIRST, view, 96)).max() <= 1
    assert scenes.box_of(scene.figures[0], HEAD_BOX, 96)[1] >= 0


def test_both_of_two_have_a_head_where_its_box_says_and_one_ground():
    for seed in range(4):
        scene = scenes.pair((FIRST, SECOND), np.random.default_rng(seed))
        pixels = scenes.picture(scene, 96)
        ground = np.frombuffer(bytes.fromhex(GROUND[scene.ground][1:]), np.uint8)
        left, right = (scenes.box_of(f, HEAD_BOX, 96) for f in scene.from_left)
        assert left[0] < right[0]
        for x0, y0, x1, y1 in (left, right):
            head = pixels[max(0, int(y0)) : int(y1), max(0, int(x0)) : int(x1)]
            assert 0.2 < (head != ground).any(-1).mean() < 1
        assert (pixels[0, 0] == ground).all()


def test_captions_of_two_give_each_a_place_and_tell_only_who_is_asked_for():
    known = set(scene_captions.vocabulary())
    for seed in range(40):
        rng = np.random.default_rng(seed)
        scene = scenes.pair((FIRST, SECOND), rng)
        texts = [scene_captions.caption(scene, told, rng) for told in ((0, 1), (0,), ())]
        for text in texts:
            assert len(re.findall(r"\bleft\b", text)) == len(re.findall(r"\bright\b", text)) == 1
        assert "tan" not in texts[2].split()
        assert not re.search(r"\b(hair|afro|beard|skin|glasses|spectacles)\b", texts[2])
        unknown = [w for t in texts for w in re.findall(scene_captions.WORD, t.lower())]
        assert len([w for w in unknown if w not in known]) <= 6
    assert not IDENTITY_WORDS.search("a person riding a bicycle on yellow")


def test_a_share_of_captions_has_words_that_no_vocabulary_holds():
    known, rng = set(scene_captions.vocabulary()), np.random.default_rng(0)
    texts = []
    for view in views(rng, 200):
        texts.append(scene_captions.caption(scenes.alone(FIRST, view), (), rng))
    words = [set(re.findall(scene_captions.WORD, text.lower())) for text in texts]
    unknown = [not each <= known for each in words]
    assert 0.05 < np.mean(unknown) < 0.3
    assert min(map(len, words)) < 7  # fragments
    assert {"person", "riding", "bicycle", "on", "yellow"} <= known


def test_both_of_two_are_recognised_in_the_true_scene_and_not_in_another():
    pair = pairs.held_out_pairs(1)[0]._replace(others=(FIRST, SECOND))
    true = scenes.picture(pair.scene, 96) / np.float32(255)
    shown = tuple(f._replace(identity=FIRST) for f in pair.scene.figures)
    other = scenes.picture(pair.scene._replace(figures=shown), 96) / np.float32(255)
    answers = pairs.recognised(np.stack([true, other, true]), pair)
    np.testing.assert_array_equal(answers, [[True, True], [False, False], [True, True]])
    rates = pairs.rates({"true": np.stack([true]), "other": np.stack([other])}, [pair])
    assert (rates["true"]["both"], rates["other"]["both"]) == (1, 0)


def test_a_persons_region_holds_their_figure():
    for seed in range(6):
        scene = scenes.pair((FIRST, SECOND), np.random.default_rng(seed))
        ground = np.frombuffer(bytes.fromhex(GROUND[scene.ground][1:]), np.uint8)
        places = [scenes.region(scene, n) for n in range(2)]
        (left, right) = sorted(places)
        assert left[2] == right[0]
        for f, (x0, y0, x1, y1) in zip(scene.figures, places, strict=True):
            pixels = scenes.picture(scene._replace(figures=(f,)), 100)
            drawn = (np.abs(pixels.astype(int) - ground) > 40).any(-1)
            box = np.s_[int(100 * y0) : round(100 * y1) + 1, int(100 * x0) : round(100 * x1) + 1]
            assert drawn[box].sum() > 0.75 * drawn.sum()
    alone = scenes.alone(FIRST, scene.figures[0].view)
    assert scenes.region(alone, 0) == (0, 0, 1, 1)


def test_a_chunk_is_the_same_on_any_machine_and_shows_nobody_held_out(tmp_path):
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
        job = draw.jobs(folder, 2, 0, 32, 16, 8)[1]
        job = job._replace(people=job.people[:5])
        assert draw.draw_chunk(job) == 1
    one, other = (draw.read_chunk(folder, 1) for folder in folders)
    np.testing.assert_array_equal(one.pixels, other.pixels)
    assert one.texts == other.texts
    assert one.pixels.shape == (5, draw.SCENES, 32, 32, 3)
    assert one.references.shape == (5, 5, 16, 16, 3)
    np.testing.assert_allclose(one.focus.mean((2, 3)), 1, rtol=2e-3)
    assert one.regions.shape == (5, draw.SCENES, 2, 4)
    groups = one.beside != 0
    assert groups.any()
    assert not groups[:, 0].any()  # the reference's own view shows it alone
    for n, row in enumerate(one.beside):
        others = (n + np.arange(draw.SCENES)) % 5 - n
        np.testing.assert_array_equal(row[groups[n]], others[groups[n]])
    np.testing.assert_array_equal(one.regions[~groups], [[[1] * 4, [0] * 4]] * (~groups).sum())
    assert (one.regions[groups].max((0, 2)) > 0.3).all()
    assert (one.regions[groups].sum(1) <= 1.001).all()  # up to the middle between the two
    everyone = {p for job in draw.jobs(tmp_path, 20, 0, 32, 16, 8) for p in job.people}
    assert len(everyone) == 20 * draw.PEOPLE
    assert not everyone & set(held_out())


def test_two_people_end_on_one_floor_whether_they_sit_or_stand():
    kinds = set()
    for seed in range(8):
        scene = scenes.pair((FIRST, SECOND), np.random.default_rng(seed))
        ground = np.frombuffer(bytes.fromhex(GROUND[scene.ground][1:]), np.uint8)
        for f in scene.figures:
            kinds.add(render.body_kind(f.view.body))
            pixels = scenes.picture(scene._replace(figures=(f,)), 100)
            rows = np.flatnonzero((np.abs(pixels.astype(int) - ground) > 40).any((1, 2)))
            assert abs(rows[-1] + 1 - 100 * scenes.FLOOR) <= 1
    assert kinds == {"bust", "sitting", "standing"}
