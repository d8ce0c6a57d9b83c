"""Layout of the page: its components, and which function each of them calls."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from ic_jax import flow
from infer.app.events import Events
from infer.app.form import CHARACTERS, PLACES
from infer.app.studio import Studio
from infer.engine.characters import MAX_BYTES

# Small pictures are enlarged, and below the label.
CSS = """
#picture img, .seen img {object-fit: contain; width: 100%; height: 100%;}
.box img {width: auto; height: auto; max-width: 100%; max-height: 100%;}
#picture .image-frame, .seen .image-frame, .box .image-frame {padding-top: 32px; height: 100%;}
#gallery .grid-wrap {padding-top: 32px;}
#status progress {vertical-align: middle; width: 60%;}
"""
# Pictures that stand beside a character's inputs.
SHOWN: dict[str, Any] = {"interactive": False, "height": 230, "buttons": []}
SHOWN |= {"scale": 2, "min_width": 150}
# Fonts of the reader's machine: the usual theme fetches its own from the internet.
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def show(
    studio: Studio,
    host: str,
    port: int,
    login: Callable[[str, str], bool] | None = None,
    *,
    mcp: bool = False,
) -> gr.Blocks:
    """Serve the page, and return at once; `close` of the result ends it.

    Args:
        studio: what draws.
        host: address to listen on.
        port: likewise.
        login: whether a user's name and password let in; None asks nobody.
        mcp: whether `Events.draw` is a tool for MCP clients as well.
    """
    blocks = Page(studio).blocks
    blocks.launch(
        server_name=host,
        server_port=port,
        auth=login,
        mcp_server=mcp,
        max_file_size=MAX_BYTES,
        css=CSS,
        theme=THEME,
        share=False,
        ssr_mode=False,
        footer_links=["api"],
        quiet=True,
        prevent_thread_lock=True,
    )
    return blocks


class Page:
    """Components of the page, and their events."""

    def __init__(self, studio: Studio):
        self.studio, self.events = studio, Events(studio)
        with gr.Blocks(title="ic_jax", analytics_enabled=False, fill_width=True) as self.blocks:
            self.drawn, self.chosen, self.kept = gr.State([]), gr.State(None), gr.State({})
            with gr.Row():
                with gr.Column():
                    self._characters()
                    self._scene()
                    settings = self._settings()
                with gr.Column():
                    self._results()
            scene = [self.prompt, self.negative_prompt]
            self.form = [*scene, *settings, *self.files, *self.places]
            self._connect()

    def _characters(self) -> None:
        self.files, self.places, self.canvases, self.seen, self.cuts = [], [], [], [], []
        empty = self.studio.empty()
        canvases = self.events.show_places(empty.width, empty.height, *empty.places)
        with gr.Tabs():
            for number in range(1, CHARACTERS + 1):
                with gr.Tab(f"Character {number}"), gr.Row():
                    with gr.Column(scale=3, min_width=220, elem_id=f"character-{number}"):
                        file = gr.File(label="Reference picture", file_types=["image"], height=110)
                        place = gr.Dropdown(
                            list(PLACES),
                            label="Where",
                            info="or a box: click two of its corners",
                            allow_custom_value=True,
                        )
                        cut = gr.Button("Cut out of its ground", size="sm")
                    box = gr.Image(
                        canvases[number - 1],
                        label="Its box",
                        **SHOWN,
                        elem_id=f"box-{number}",
                        elem_classes="box",
                    )
                    seen = gr.Image(
                        label="What the model sees",
                        **SHOWN,
                        elem_classes="seen",
                    )
                self.files.append(file)
                self.places.append(place)
                self.canvases.append(box)
                self.seen.append(seen)
                self.cuts.append(cut)

    def _scene(self) -> None:
        prompts = self.studio.prompts()
        self.prompt = gr.Textbox(self.studio.empty().prompt, label="Prompt", lines=3, max_lines=8)
        gr.Examples([[text] for text in prompts], self.prompt, label="Examples")
        with gr.Row():
            self.draw = gr.Button("Draw", variant="primary", scale=3)
            self.cancel = gr.Button("Cancel")

    def _settings(self) -> list[Any]:
        """Build the accordion of settings; return its components in the order of `Form`."""
        initial, model = self.studio.empty(), self.studio.loaded.pipe
        step = model.vae.config.downscale * flow.PATCH
        with gr.Accordion("Settings", open=False):
            self.negative_prompt = gr.Textbox(
                label="Negative prompt", info="what true guidance steers away from"
            )
            styles = gr.CheckboxGroup(
                list(self.studio.loaded.loras),
                label="Styles",
                visible=bool(self.studio.loaded.loras),
            )
            with gr.Row():
                self.subject = gr.Slider(
                    0, 2, initial.subject_scale, step=0.05, label="Strength of the character"
                )
                guidance = gr.Slider(
                    *(1, 10, initial.guidance_scale),
                    step=0.1,
                    label="Guidance",
                    visible=model.transformer.config.guidance_embeds,
                )
                true_cfg = gr.Slider(
                    *(1, 10, initial.true_cfg_scale),
                    step=0.1,
                    label="True guidance",
                    info="above 1, every step takes twice as long",
                )
            with gr.Row():
                self.steps = gr.Slider(1, 100, initial.num_inference_steps, step=1, label="Steps")
                sides = initial.width, initial.height
                self.size = [
                    gr.Slider(step, 2048, side, step=step, label=label)
                    for side, label in zip(sides, ("Width", "Height"), strict=True)
                ]
            with gr.Row():
                self.seed = gr.Number(initial.seed, precision=0, label="Seed")
                self.random_seed = gr.Checkbox(initial.random_seed, label="New seed each time")
                self.pictures = gr.Slider(1, 4, initial.pictures, step=1, label="Pictures")
            self.reset = gr.Button("Reset all", size="sm")
        scales = [self.subject, guidance, true_cfg]
        count = [self.random_seed, self.pictures]
        return [styles, *scales, self.steps, *self.size, self.seed, *count]

    def _results(self) -> None:
        self.picture = gr.Image(
            label="Picture",
            interactive=False,
            height=420,
            buttons=["fullscreen"],
            elem_id="picture",
        )
        self.status = gr.HTML(elem_id="status")
        self.gallery = gr.Gallery(
            label="Drawn so far",
            elem_id="gallery",
            columns=6,
            height=150,
            object_fit="contain",
            fit_columns=False,
            allow_preview=False,
            interactive=False,
            buttons=[],
        )
        with gr.Row():
            self.again = gr.Button("Draw again")
            self.take = gr.Button("Use arguments")
            self.download = gr.DownloadButton("Download", interactive=False)
        self.note = gr.Markdown()
        with gr.Accordion("Arguments of the picture", open=False):
            self.arguments = gr.JSON(show_label=False)
        with (
            gr.Accordion("Draw a picture of earlier again", open=False),
            gr.Column(elem_id="earlier"),
        ):
            self.earlier = gr.File(label="The picture", file_types=["image"], height=110)

    def _connect_canvases(self, private: dict[str, Any]) -> None:
        places: list[Any] = [*self.size, *self.places]
        private = private | {"show_progress": "hidden"}  # which would cover the canvas
        corner = gr.State(None)
        for component in places:  # as it is written: sizes come with every key
            shown = [*self.canvases, corner]
            options = private | {"preprocess": False}
            component.change(self.events.show_places, places, shown, **options)
        for number, (place, box) in enumerate(zip(self.places, self.canvases, strict=True)):

            def put(event: gr.SelectData, *values: Any, number: int = number) -> list[Any]:
                return self.events.put_corner(event, number, *values)

            box.select(put, [corner, *places], [place, corner, *self.canvases], **private)

    def _connect(self) -> None:
        """Connect the components with the functions of `Events`."""
        events = self.events
        private: dict[str, Any] = {"api_visibility": "private"}
        taken = [self.kept, self.note, *self.form]
        for file, seen, cut in zip(self.files, self.seen, self.cuts, strict=True):
            file.change(events.preview, file, seen, **private)
            cut.click(events.cut_out, file, file, **private)
        self._connect_canvases(private)
        self.chosen.change(events.describe, self.chosen, [self.arguments, self.download], **private)
        self.gallery.select(events.choose, self.drawn, [self.picture, self.chosen], **private)
        self.earlier.upload(events.open, self.earlier, [self.picture, self.chosen], **private)
        self.take.click(events.take, self.chosen, taken, **private)
        self.reset.click(events.reset, None, taken, **private)
        again = self.again.click(events.take, self.chosen, taken, **private)
        shown = [self.picture, self.status, self.gallery, self.drawn, self.chosen, self.seed]
        for trigger in (self.draw.click, again.success):
            drawing = trigger(
                events.draw_form,
                [self.drawn, self.kept, *self.form],
                shown,
                show_progress="hidden",
                concurrency_limit=None,  # the engine has the queue
                **private,
            )
            drawing.then(lambda: "", None, self.status, **private)
        self.cancel.click(events.cancel, None, None, queue=False, **private)
        self.blocks.unload(events.cancel)
        gr.Button(visible=False).click(
            events.draw,
            [
                self.prompt,
                self.files[0],
                self.places[0],
                self.subject,
                self.steps,
                self.seed,
            ],
            self.picture,
            api_name="draw",
            concurrency_limit=None,
        )
