"""Events of the page, as functions of the inputs' values; they know the engine, not the layout."""

import html
import queue
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from PIL import Image

from ic_jax import cli
from infer.app.canvas import Corner, box_between, canvas, canvas_size
from infer.app.form import Form
from infer.app.studio import Studio
from infer.engine import Drawing, QueueFullError, StoppedError, TimeLimitError
from infer.picture_file import read_metadata

PREVIEWS = 4  # intermediate pictures of a drawing
UNKNOWN_SHOWN = 5


class Shown(NamedTuple):
    """What drawing changes on the page."""

    picture: Any = gr.skip()
    status: Any = gr.skip()
    gallery: Any = gr.skip()
    drawn: Any = gr.skip()  # files of the gallery
    chosen: Any = gr.skip()  # the one that is drawn again
    seed: Any = gr.skip()


class Events:
    """Functions that the page's buttons call."""

    def __init__(self, studio: Studio):
        self.studio = studio
        self._running: dict[str | None, list[Drawing]] = {}  # by the session of a page

    def preview(self, file: str | None) -> Image.Image | None:
        """Return what the model sees of an uploaded picture."""
        if file is None:
            return None
        with _in_one_line():
            return self.studio.seen(file)

    def cut_out(self, file: str | None) -> str | None:
        """Return a file of the character alone, cut out of an uploaded picture."""
        if file is None:
            return None
        with _in_one_line(file):
            return self.studio.cut_out(file)

    def show_places(self, width: int | None, height: int | None, *places: str) -> list[Any]:
        """Return the canvas of each character, after a place or the picture's size changed.

        The last value is the box that waits for its second corner: none. The size may be one that
        is still being written.
        """
        if not width or not height:
            return [gr.skip()] * (len(places) + 1)
        return [*_canvases(places, width, height), None]

    def put_corner(
        self,
        event: gr.SelectData,
        number: int,
        waiting: tuple[int, Corner] | None,
        width: int,
        height: int,
        *places: str,
    ) -> list[Any]:
        """Take a corner of a character's box that was clicked on its canvas.

        Args:
            event: the click, in pixels of the canvas.
            number: of the character, from 0.
            waiting: number and first corner of a box that has no second one yet.
            width: of the picture; likewise `height`.
            height: see `width`.
            places: of the characters.

        Returns:
            The character's place, the box that now waits for its second corner, and the canvas of
            each character.
        """
        size = canvas_size(width, height)
        x, y = (min(max(at / side, 0.0), 1.0) for at, side in zip(event.index, size, strict=True))
        if waiting is not None and waiting[0] == number:
            place = box_between(waiting[1], (x, y))
            if place is not None:
                placed = [*places[:number], place, *places[number + 1 :]]
                return [place, None, *_canvases(placed, width, height)]
        waiting = number, (x, y)
        return [gr.skip(), waiting, *_canvases(places, width, height, waiting)]

    def draw_form(
        self, request: gr.Request, drawn: list[str], kept: dict[str, Any], *values: Any
    ) -> Iterator[Shown]:
        """Draw what the form says; yield what is shown meanwhile."""
        with _in_one_line():
            form = Form.read(values)
            self._warn_of_unknown(form.prompt)
            requests = self.studio.requests(form, kept)
            steps: queue.SimpleQueue[tuple[int, int, Image.Image | None]] = queue.SimpleQueue()
            drawings: list[Drawing] = []
            self._running[request.session_hash] = drawings
            try:
                for x in requests:
                    every = max(1, form.num_inference_steps // (PREVIEWS + 1))
                    options: dict[str, Any] = {"preview_every": every}
                    tell = None if drawings else lambda *step: steps.put(step)
                    drawings.append(self.studio.engine.submit(x, on_step=tell, **options))
                yield Shown(None, _status(drawings), seed=requests[0].seed)
                while not all(drawing.done() for drawing in drawings):
                    try:
                        *_, picture = steps.get(timeout=0.3)
                    except queue.Empty:
                        picture = None
                    yield Shown(gr.skip() if picture is None else picture, _status(drawings))
                files = [self.studio.save(drawing) for drawing in drawings]
            finally:
                self._running.pop(request.session_hash, None)
                for drawing in drawings:
                    drawing.cancel()
        drawn = [*files, *drawn]
        yield Shown(files[0], "", gr.Gallery(drawn, selected_index=None), drawn, files[0])

    def cancel(self, request: gr.Request) -> None:
        """End what this page is drawing."""
        for drawing in self._running.get(request.session_hash, ()):
            drawing.cancel()

    def choose(self, drawn: list[str], event: gr.SelectData) -> tuple[str, str]:
        """Return the picture of the gallery that was clicked, to be shown and drawn again."""
        return (drawn[event.index],) * 2

    def open(self, file: str) -> tuple[str, str]:
        """Return an uploaded picture that was drawn earlier, to be shown and drawn again."""
        with _in_one_line(file):
            self.studio.form_of(file)
        return file, file

    def describe(self, file: str | None) -> tuple[dict[str, Any], Any]:
        """Return what a picture tells, and the state of the button that downloads it."""
        if file is None:
            return {}, gr.skip()
        return read_metadata(Path(file)) or {}, gr.DownloadButton(value=file, interactive=True)

    def take(self, file: str | None) -> list[Any]:
        """Return the arguments to keep, their note and the form's values of a picture."""
        if file is None:
            raise gr.Error("choose a picture in the gallery first", print_exception=False)
        with _in_one_line(file):
            form, kept, differing = self.studio.form_of(file)
        for text in differing:
            gr.Warning(html.escape(text))
        note = ", ".join(f"{name} {value!r}" for name, value in kept.items())
        return [kept, f"Kept from the picture: {html.escape(note)}" if note else "", *form.values()]

    def reset(self) -> list[Any]:
        """Return the same of an untouched form."""
        return [{}, "", *self.studio.empty().values()]

    def draw(
        self,
        prompt: str,
        character: str | None = None,
        place: str = "anywhere",
        subject_scale: float | None = None,
        num_inference_steps: int | None = None,
        seed: int = 0,
    ) -> str:
        """Draw one picture of a character in the scene that a prompt describes.

        Args:
            prompt: the scene.
            character: reference picture of the character; without it the model draws anybody.
            place: where the character stands, a half or the center of the picture.
            subject_scale: how strongly the picture follows the reference, usually 0.8 to 1.
            num_inference_steps: number of denoising steps.
            seed: a picture depends on its seed; another seed gives another picture.
        """
        with _in_one_line():
            empty = self.studio.empty()
            values: dict[str, Any] = {"prompt": prompt, "random_seed": False, "seed": seed}
            values |= {"files": (character,), "places": (place,)}
            for name, value in (
                ("subject_scale", subject_scale),
                ("num_inference_steps", num_inference_steps),
            ):
                values |= {} if value is None else {name: value}
            (request,) = self.studio.requests(Form(**vars(empty) | values), {})
            drawing = self.studio.engine.submit(request)
            drawing.result()
            return self.studio.save(drawing)

    def _warn_of_unknown(self, prompt: str) -> None:
        tokenizer = self.studio.loaded.pipe.tokenizer_2
        unknown = [] if tokenizer is None else list(dict.fromkeys(tokenizer.unknown(prompt)))
        if unknown:
            words = ", ".join(unknown[:UNKNOWN_SHOWN]) + ", ..." * (len(unknown) > UNKNOWN_SHOWN)
            gr.Warning(f"passed over, since the model does not know it: {html.escape(words)}")


def _canvases(
    places: Sequence[str], width: int, height: int, waiting: tuple[int, Corner] | None = None
) -> list[Image.Image]:
    corners = dict([waiting] if waiting else [])
    return [canvas(places, n, width, height, corners.get(n)) for n in range(len(places))]


def _status(drawings: list[Drawing]) -> str:
    """Return the progress of drawings as HTML."""
    live = next((x for x in drawings if not x.done()), drawings[-1])
    if live.started is None:
        return "waiting for its turn"
    if not live.step:
        return "preparing (the first picture of a size compiles)"
    bar = f'<progress max="{live.steps}" value="{live.step}"></progress>'
    return f"{bar} step {live.step} of {live.steps}"


@contextmanager
def _in_one_line(file: str | None = None) -> Iterator[None]:
    """Show an expected error as one line on the page; others are defects and keep their trace."""
    try:
        yield
    except CancelledError:
        raise gr.Error("cancelled", title="", duration=3, print_exception=False) from None
    except gr.Error:
        raise
    except Exception as error:
        is_engines = isinstance(error, QueueFullError | StoppedError | TimeLimitError)
        message = str(error) if is_engines else cli.one_line(error)
        if message is None:
            raise
        if file is not None:
            message = message.replace(file, Path(file).name)
        raise gr.Error(html.escape(message, quote=False), print_exception=False) from None
