"""Engine that draws the pictures of many askers with one pipeline, for a server or a page.

    engine = Engine(pipe, max_batch=4)          # one thread draws, once it is started
    engine.warm_up()                            # optional: compiles the programs of usual requests
    with engine:                                # start() and stop()
        ana = engine.characters.add(png_bytes)  # checked; kept under ana.sha256
        drawing = engine.submit(DrawingRequest("a girl on a bridge", seed=7, subject=ana))
        drawing.result().save("ana.png")        # a concurrent.futures.Future of a PIL image

Several characters are `subjects=(PlacedCharacter(ana, region="left"), ...)` in place of `subject`.
`original=Original.read(pipe, png_bytes)` is a picture to draw over.
`Drawing` is a `concurrent.futures.Future`: `result()` waits, `cancel()` takes the request back at
any time (also while it is drawn), `add_done_callback` calls back, and `asyncio.wrap_future` awaits
it. `drawing.step` of `drawing.steps` says how far it is. With `submit(request, on_step=f,
preview_every=4)` the drawing thread calls `f(step, steps, picture)`, whose `picture` is the model's
present estimate after every fourth step, and None after the others. `submit_all` takes several
requests, or none of them.

Requests that differ in prompts, seed, characters, regions, originals and masks alone are drawn
together, up to `max_batch`, padded to a power of two, so that few programs are compiled. A picture
depends on its own request alone.

Errors: `submit` raises ValueError (an argument that cannot be used), `QueueFullError` (with
`retry_after`, in seconds) or `StoppedError`. A `Drawing` ends with a picture, or with
`TimeLimitError`, `StoppedError`, `concurrent.futures.CancelledError`, or what the pipeline raised.
"""

from infer.engine.characters import Character as Character
from infer.engine.characters import Characters as Characters
from infer.engine.characters import UnknownCharacterError as UnknownCharacterError
from infer.engine.drawing import Drawing as Drawing
from infer.engine.drawing import DrawingRequest as DrawingRequest
from infer.engine.drawing import PlacedCharacter as PlacedCharacter
from infer.engine.drawing import QueueFullError as QueueFullError
from infer.engine.drawing import StoppedError as StoppedError
from infer.engine.drawing import TimeLimitError as TimeLimitError
from infer.engine.engine import Engine as Engine
from infer.engine.originals import Original as Original
