"""What the page draws with: the engine, its styles, and the files of its pictures."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from PIL import Image

from ic_jax.files import atomic_file
from ic_jax.preprocessing.arguments import SamplingArguments
from ic_jax.preprocessing.figures import prepare_subject
from ic_jax.preprocessing.images import ImageError, to_square
from ic_jax.untrusted_files import read_bytes
from infer import demo, output
from infer.app.form import ANYWHERE, CHARACTERS, KEPT, Form, empty, region_of
from infer.engine import Character, Drawing, DrawingRequest, Engine, PlacedCharacter
from infer.engine.characters import MAX_BYTES, decode
from infer.engine.loading import LoadedModel
from infer.from_picture import PictureArguments, read_arguments
from infer.output import Destination

GENERAL_PROMPTS = (
    "A girl is playing a guitar in the street",
    "The character rides a bicycle through autumn leaves, in a yellow raincoat",
    "The character reads a book in a cosy cafe, warm evening light",
    "The character as an astronaut on the moon, the earth behind, cinematic",
)
CUT = "-cut"  # end of the names of characters that were cut out
# What a picture tells beside its inputs and `KEPT`.
OF_NO_INPUT = (
    *("ic_jax", "jax", "device", "model", "dtype"),
    *("subject", "subject_sha256", "subjects", "subjects_sha256", "lora", "trigger"),
)


@dataclass(frozen=True)
class Studio:
    """An engine with its model, and the folder of the files of its pictures."""

    engine: Engine
    loaded: LoadedModel
    folder: Path
    uploads: dict[str, tuple[str, str]] = field(default_factory=dict)  # path and name by SHA-256

    def empty(self) -> Form:
        """Return the form before anybody has touched it."""
        return empty(self.loaded.pipe.sampling, self.prompts()[0])

    def prompts(self) -> list[str]:
        """Return examples of what the loaded model knows."""
        tokenizer = self.loaded.pipe.tokenizer_2
        if tokenizer is None or tokenizer.words is None:
            return list(GENERAL_PROMPTS)
        return [text for text in demo.EXAMPLES if not tokenizer.unknown(text)]

    def character(self, file: str) -> Character:
        """Return the character of an uploaded picture.

        Raises:
            ImageError: it is no picture, damaged or too large; the message names the file.
        """
        path = Path(file)
        try:
            character = self.engine.characters.add(read_bytes(path, limit=MAX_BYTES))
        except ValueError as error:
            message = str(error).replace(str(path), path.name)
            message = message if path.name in message else f"{path.name}: {message}"
            raise ImageError(message) from None
        self.uploads[character.sha256] = (file, path.name)
        return character

    def seen(self, file: str) -> Image.Image:
        """Return what the model sees of an uploaded picture; ImageError as `character`."""
        picture, pipe = decode(self.character(file).data), self.loaded.pipe
        if pipe.image_encoder is None:  # read anew for each use, by the drawing thread alone
            return Image.fromarray(to_square(picture, "pad"))
        return pipe.preview_subject(picture)

    def cut_out(self, file: str) -> str:
        """Write the character of an uploaded picture, cut out of its ground; return the file.

        Raises:
            ImageError: as `character`; or there is nothing to cut out.
        """
        self.character(file)  # within its limits
        folder = self.folder / secrets.token_hex(8)
        folder.mkdir()
        path = folder / f"{Path(file).stem.removesuffix(CUT)}{CUT}.png"
        with atomic_file(path) as part:
            prepare_subject(file).save(part, "PNG")
        return str(path)

    def requests(self, form: Form, kept: Mapping[str, Any]) -> list[DrawingRequest]:
        """Return the engine's requests for a form, one for each picture.

        Args:
            form: the inputs' values; those that are the model's own are left to it.
            kept: the arguments in `KEPT` of a picture that is drawn again.

        Raises:
            ValueError: a value that cannot be used.
        """
        sampling = self.loaded.pipe.sampling
        scales: dict[str, Any] = {
            name: None if value == getattr(sampling, name) else value
            for name in ("guidance_scale", "true_cfg_scale", "subject_scale")
            if (value := getattr(form, name)) is not None
        }
        placed = tuple(
            PlacedCharacter(self.character(file), region=region_of(place))
            for file, place in zip(form.files, form.places, strict=True)
            if file is not None
        )
        if not placed:
            scales.pop("subject_scale")
        is_plain = len(placed) == 1 and placed[0].region is None
        seed = secrets.randbelow(2**32 - form.pictures) if form.random_seed else form.seed
        return [
            DrawingRequest(
                prompt=form.prompt,
                negative_prompt=form.negative_prompt or None,
                seed=seed + i,
                subject=placed[0].character if is_plain else None,
                subjects=() if is_plain else placed,
                height=form.height,
                width=form.width,
                num_inference_steps=form.num_inference_steps,
                loras=tuple((name, self.loaded.loras[name].lora.weight) for name in form.styles),
                **scales,
                **kept,
            )
            for i in range(form.pictures)
        ]

    def save(self, drawing: Drawing) -> str:
        """Write the picture of a drawing, which tells its arguments; return its file."""
        request, told = drawing.request, self.loaded.metadata(drawing, self._name)
        folder = self.folder / secrets.token_hex(8)  # nobody guesses where others' pictures are
        folder.mkdir()
        (job,) = output.jobs(Destination(folder), [request.prompt], [request.seed])
        return str(output.save(drawing.result(), job.file, told))

    def _name(self, character: Character) -> str:
        """Return the name of the file that was uploaded."""
        _, name = self.uploads[character.sha256]
        return name

    def form_of(self, file: str) -> tuple[Form, dict[str, Any], list[str]]:
        """Return the form that draws a picture again, the arguments to keep, and what differs.

        The picture is a stranger's: no file that it names is opened, and its characters are those
        that were uploaded to this page, found by their hash.

        Raises:
            ValueError: it does not tell how it was drawn, or cannot be drawn here.
        """
        told = read_arguments(Path(file))
        defaults, known = self.empty(), {*vars(self.empty()), *KEPT, *OF_NO_INPUT}
        plain = {f.name: f.default for f in fields(SamplingArguments)}
        for name, value in vars(told).items():
            if value and name not in known and value != plain.get(name):
                raise ValueError(f"a picture with {name} is drawn again by `infer --from PICTURE`")
        differing = []
        if told.model != self.loaded.name:
            differing.append(f"the picture's model is {told.model!r}")
        if told.dtype != str(self.loaded.pipe.dtype):
            differing.append(f"the picture's dtype is {told.dtype}")
        files, places, missing = self._characters_of(told)
        values = {f: getattr(told, f) for f in vars(defaults) if hasattr(told, f)}
        return (
            Form(
                **vars(defaults)
                | {name: value for name, value in values.items() if value is not None}
                | {"styles": self._styles_of(told), "random_seed": False, "pictures": 1}
                | {"files": files, "places": places}
            ),
            self._kept(told),
            differing + [f"its character is not here: add {name!r}" for name in missing],
        )

    def _characters_of(
        self, told: PictureArguments
    ) -> tuple[tuple[str | None, ...], tuple[str, ...], list[str]]:
        """Return the files and places of a picture's characters, and the names of missing ones."""
        pairs = list(zip(told.subjects, told.subjects_sha256, strict=False))
        if told.subject is not None:
            pairs = [(told.subject, told.subject_sha256 or "")]
        if len(pairs) < len(told.subjects) or len(pairs) > CHARACTERS:
            raise ValueError("a picture of such subjects is drawn again by `infer --from PICTURE`")
        files: list[str | None] = [None] * CHARACTERS
        places, missing = [ANYWHERE] * CHARACTERS, []
        for i, (option, digest) in enumerate(pairs):
            name, at, place = option.rpartition("@") if told.subjects else (option, "", "")
            if at and place != "all":
                region_of(place)
                places[i] = place
            files[i], _ = self.uploads.get(digest, (None, None))
            if files[i] is None:
                missing.append(name or option)
        return tuple(files), tuple(places), missing

    def _styles_of(self, told: PictureArguments) -> list[str]:
        """Return the names of a picture's LoRAs; ValueError if the page lacks one."""
        names = {f"{x.source}={x.lora.weight!r}": name for name, x in self.loaded.loras.items()}
        unknown = [source for source in told.lora if source not in names]
        if unknown:
            raise ValueError(f"the picture's LoRA {unknown[0]!r} is not among this page's styles")
        return [names[source] for source in told.lora]

    def _kept(self, told: PictureArguments) -> dict[str, Any]:
        """Return the arguments that the form does not show and that are not the model's own."""
        defaults = self.loaded.pipe.sampling.to_dict() | {"subject_fit": "pad"}
        values = {name: getattr(told, name) for name in KEPT}
        follows = told.negative_subject_scale == told.subject_scale
        has_subject = told.subject is not None or told.subjects
        if not has_subject or (follows and defaults["negative_subject_scale"] is None):
            values["negative_subject_scale"] = None
        return {k: v for k, v in values.items() if v is not None and v != defaults.get(k)}
