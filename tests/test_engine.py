"""The engine that draws the pictures of many askers in batches."""

import io
from concurrent.futures import CancelledError, wait
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ic_jax import ImageError, InstantCharacterPipeline
from infer.engine import (
    Characters,
    Drawing,
    DrawingRequest,
    Engine,
    Original,
    PlacedCharacter,
    QueueFullError,
    StoppedError,
    TimeLimitError,
    UnknownCharacterError,
)
from tests.slow_pipeline import PATIENCE, SlowPipeline, eventually

DEMO = Path(__file__).parent.parent / "infer" / "demo.png"
SCENE = "A portrait of a person shrugging with both palms up."
STEPS = 3


@pytest.fixture(scope="module")
def pipe():
    return InstantCharacterPipeline.from_pretrained(dtype="float32")


def request(prompt=SCENE, **arguments):
    return DrawingRequest(prompt, num_inference_steps=STEPS, **arguments)


def largest_difference(a, b):
    return np.abs(np.asarray(a, np.int32) - np.asarray(b, np.int32)).max()


def test_a_picture_of_a_batch_is_that_of_its_own_request(pipe):
    """Three with their own prompts and characters as one batch of four; another one alone."""
    other = Image.open(DEMO).convert("RGB").rotate(90)
    file = io.BytesIO()
    other.save(file, "PNG")
    engine, side = Engine(pipe, max_batch=4), pipe.sampling.height
    ana = engine.characters.add(DEMO.read_bytes())
    ben = engine.characters.add(file.getvalue())
    cases = [(SCENE, 1, ana), ("A person waving.", 2, ben), (SCENE, 3, ben)]
    requests = [request(prompt, seed=seed, subject=who) for prompt, seed, who in cases]
    scaled = request(seed=1, subject=ana, subject_scale=0.5)
    seen: list[tuple[int, int, tuple | None]] = []

    def on_step(step, steps, picture):
        seen.append((step, steps, picture and picture.size))

    drawings = [engine.submit(r) for r in requests[:2]]
    drawings.append(engine.submit(scaled))
    drawings.append(engine.submit(requests[2], on_step=on_step, preview_every=2))
    with engine:
        images = [drawing.result(PATIENCE) for drawing in drawings]
    assert [drawing.batch for drawing in drawings] == [3, 3, 1, 3]
    assert seen == [(1, STEPS, None), (2, STEPS, (side, side)), (3, STEPS, None)]
    common = {"num_inference_steps": STEPS, "callback_on_step_end": lambda *_: None}
    for (prompt, seed, who), image in zip(cases, [*images[:2], images[3]], strict=True):
        picture = DEMO if who is ana else other
        alone = pipe(prompt, subject_image=picture, seed=seed, **common).images[0]
        assert largest_difference(image, alone) <= 1  # float32 rounds to 1e-5, then to a byte
    assert largest_difference(images[2], images[0]) > 10
    assert largest_difference(images[1], images[3]) > 10
    assert engine.drawing == engine.waiting == 0


@contextmanager
def slow_engine(pipe, **options):
    slow = SlowPipeline(pipe)
    engine = Engine(slow, **options)
    try:
        yield slow, engine
    finally:
        slow.step.set()
        engine.stop()


def test_requests_of_one_shape_are_drawn_together_in_order(pipe):
    with slow_engine(pipe, max_batch=5) as (slow, engine):
        slow.step.set()
        kinds = [{}, {"height": 64}, {}, {"loras": (("ink", 0.5),)}, {}, {}, {"height": 64}, {}]
        drawings = [engine.submit(request(seed=i, **kind)) for i, kind in enumerate(kinds)]
        engine.start()
        assert [d.result(PATIENCE).getpixel((0, 0)) for d in drawings] == list(range(8))
        # Batches are of 4, 2 or 1, filled up with the last picture.
        assert slow.drawn == [[0, 2, 4, 5], [1, 6], [3], [7]]
        assert slow.adapters == [{}, {"ink": 0.5}, {}]


def test_pictures_that_are_drawn_over_join_their_kind(pipe):
    with slow_engine(pipe, max_batch=4) as (slow, engine):
        slow.step.set()
        red, blue = (Original.read(slow, png(64, 64, colour)) for colour in ("red", "blue"))
        masked = Original.read(slow, png(64, 64), png(64, 64))
        kinds: list[dict] = [{"original": red}, {"height": 64, "width": 64}, {"original": masked}]
        kinds += [{"original": blue}, {"original": red, "strength": 1.0}]
        drawings = [engine.submit(request(seed=i, **kind)) for i, kind in enumerate(kinds)]
        engine.start()
        wait(drawings, PATIENCE)
        assert slow.drawn == [[0, 3], [1], [2], [4]]
        # At a strength of 0.6 the first of three steps is skipped.
        assert [drawing.steps for drawing in drawings] == [2, 3, 2, 2, 3]


def test_several_characters_keep_their_places_in_a_batch(pipe):
    with slow_engine(pipe, max_batch=2) as (slow, engine):
        slow.step.set()
        ana, ben = (engine.characters.add(png(8, 8, colour)) for colour in ("red", "blue"))
        half = (0.5, 0.0, 1.0, 1.0)
        one = (PlacedCharacter(ana, 0.5, "left"), PlacedCharacter(ben, None, half))
        other = (PlacedCharacter(ben, region="top"), PlacedCharacter(ana))
        apart = (PlacedCharacter(ana), PlacedCharacter(ben))
        drawings = [engine.submit(request(seed=i, subjects=x)) for i, x in enumerate((one, apart))]
        drawings.append(engine.submit(request(seed=2, subjects=other)))
        engine.start()
        wait(drawings, PATIENCE)
        assert slow.drawn == [[0, 2], [1]]
        engine.submit(request(seed=3, subjects=one)).result(PATIENCE)
        ((first, second),) = slow.arguments["subjects"]
        assert slow.arguments["subject_image"] is None
        assert (first.scale, first.region) == (0.5, "left")
        assert (second.scale, second.region) == (None, half)


def test_a_full_queue_refuses_all_or_nothing(pipe):
    with slow_engine(pipe, max_waiting=3) as (_, engine):
        drawings = engine.submit_all([request(seed=1), request(seed=2)])
        with pytest.raises(QueueFullError, match="2 pictures are waiting") as error:
            engine.submit_all([request(seed=3), request(seed=4)])
        assert error.value.retry_after >= 1
        assert engine.waiting == 2
        drawings[0].cancel()
        engine.submit_all([request(seed=3), request(seed=4)])
        assert engine.waiting == 3


def test_a_cancelled_drawing_ends_at_once_and_its_neighbour_goes_on(pipe):
    with slow_engine(pipe, max_batch=2) as (slow, engine):
        first, second, third, fourth = (engine.submit(request(seed=i)) for i in range(4))
        engine.start()
        eventually(lambda: engine.drawing == 2)
        assert first.cancel()
        assert third.cancel()
        with pytest.raises(CancelledError):
            first.result(0)
        slow.step.set()
        assert second.result(PATIENCE).getpixel((0, 0)) == 1
        assert fourth.result(PATIENCE).getpixel((0, 0)) == 3
        assert slow.drawn == [[0, 1], [3]]


def test_a_batch_that_nobody_wants_is_abandoned(pipe):
    with slow_engine(pipe) as (slow, engine):
        first = engine.submit(request(seed=1))
        engine.start()
        eventually(lambda: engine.drawing == 1)
        first.cancel()
        slow.step.set()
        assert engine.submit(request(seed=2)).result(PATIENCE).getpixel((0, 0)) == 2
        assert slow.drawn == [[2]]


def test_the_time_limit_ends_what_waits_and_what_is_drawn(pipe):
    with slow_engine(pipe, max_batch=1, time_limit=0.05) as (slow, engine):
        drawings = [engine.submit(request(seed=i)) for i in range(2)]
        engine.start()
        for drawing in drawings:
            with pytest.raises(TimeLimitError, match="not done within 0"):
                drawing.result(PATIENCE)
        slow.step.set()
        assert slow.drawn == []


def test_stopping_finishes_what_is_drawn_and_fails_what_waits(pipe):
    with slow_engine(pipe, max_batch=1) as (slow, engine):
        drawn, waiting = (engine.submit(request(seed=i)) for i in range(2))
        engine.start()
        eventually(lambda: engine.drawing == 1)
        engine.refuse()
        for refused in (lambda: waiting.result(PATIENCE), lambda: engine.submit(request())):
            with pytest.raises(StoppedError):
                refused()
        slow.step.set()
        engine.stop()
        assert drawn.result(0).getpixel((0, 0)) == 0


def test_one_that_cannot_be_drawn_fails_alone(pipe, recwarn):
    def broken(*_):
        raise ZeroDivisionError

    with slow_engine(pipe) as (slow, engine):
        slow.step.set()
        good, bad, last = (engine.submit(request("a secret", seed=i)) for i in (1, 666, 2))
        unheard = engine.submit(request(seed=3), on_step=broken)
        engine.start()
        wait([good, bad, last, unheard], PATIENCE)
        assert [x.result(0).getpixel((0, 0)) for x in (good, last)] == [1, 2]
        assert isinstance(bad.exception(0), FloatingPointError)
        assert isinstance(unheard.exception(0), ZeroDivisionError)
    assert not [w for w in recwarn if "secret" in str(w.message)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"height": 100}, "height is 100; it must be a multiple of 16"),
        ({"height": 4096, "width": 4096}, "a picture of 16777216 pixels is too large"),
        ({"num_inference_steps": 101}, "num_inference_steps is 101; it must be at most 100"),
        ({"seed": -1}, "seed -1 is not"),
        ({"subject_end": 0.5}, "subject_end does nothing without a subject"),
        ({"subject_scale": 1.0}, "subject_scale does nothing without a subject"),
        ({"loras": (("oil", 1.0),)}, "there is no LoRA 'oil'; known are ink"),
        ({"loras": (("ink", float("nan")),)}, "the weight of LoRA 'ink' is nan"),
        ({"guidance_scale": float("inf")}, "guidance_scale is inf"),
        ({"prompt": "\ud800"}, "prompt"),
    ],
)
def test_what_cannot_be_drawn_is_refused_when_it_is_asked_for(pipe, arguments, message):
    with slow_engine(pipe) as (_, engine), pytest.raises(ValueError, match=message):
        engine.submit(DrawingRequest(**arguments))


def png(width, height, colour="white"):
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, "PNG")
    return file.getvalue()


def test_a_region_is_no_file_and_no_empty_box(pipe):
    with slow_engine(pipe) as (_, engine):
        ana = engine.characters.add(png(8, 8))
        with pytest.raises(ValueError, match="'/etc/passwd' is none of all, left"):
            PlacedCharacter(ana, region="/etc/passwd")
        with pytest.raises(ValueError, match="is no box"):
            engine.submit(request(subjects=(PlacedCharacter(ana, region=(0.5, 0, 0.5, 1)),)))
        with pytest.raises(ValueError, match="5 characters; at most 4"):
            engine.submit(request(subjects=(PlacedCharacter(ana),) * 5))


def test_characters_that_were_used_last_are_kept():
    characters = Characters(2)
    red, green, blue = (png(8, 8, colour) for colour in ("red", "green", "blue"))
    first, second = characters.add(red), characters.add(green)
    assert characters.add(red) is first
    characters.add(blue)
    assert len(characters) == 2
    assert characters.get(first.sha256) is first
    with pytest.raises(UnknownCharacterError, match=second.sha256):
        characters.get(second.sha256)
    encoded = []

    def encode(picture, fit):
        encoded.append((picture.shape, fit))
        return np.ones(1)

    for fit in ("pad", "pad", "stretch"):
        first.features(encode, fit)
    assert encoded == [((8, 8, 3), "pad"), ((8, 8, 3), "stretch")]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no picture"),
        (png(64, 64)[:60], "damaged|cannot be read"),
        (png(6000, 5000), "the picture has 30000000 pixels; at most"),
        (png(9000, 1), "9000"),
        (bytes(20 * 1024**2 + 1), "bytes; at most"),
    ],
)
def test_bad_pictures_are_refused_in_one_line(data, message):
    with pytest.raises(ImageError, match=message) as error:
        Characters(2).add(data)
    assert "\n" not in str(error.value)


def test_warming_up_compiles_every_size(pipe):
    with slow_engine(pipe, max_batch=2) as (slow, engine):
        slow.step.set()
        said: list[str] = []
        engine.warm_up(said.append)
        assert [len(seeds) for seeds in slow.drawn] == [1, 1, 2, 2]
        assert [line.partition(":")[0][-8:] for line in said] == ["compiled"] * 2
        assert isinstance(engine.submit(request()), Drawing)
