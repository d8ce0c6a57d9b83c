"""Picture files: formats by their ending, and how each carries the arguments of its picture.

A PNG holds them in the text chunk `ic_jax`, and once more in `parameters` as other tools write and
read them. The other formats hold them in EXIF's UserComment, which viewers show.
"""

import io
import json
import warnings
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ic_jax.files import json_text

METADATA_KEY, PARAMETERS_KEY = "ic_jax", "parameters"
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".avif": "AVIF"}
QUALITY: dict[str, dict[str, Any]] = {
    "PNG": {},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 95},
    "AVIF": {"quality": 90},
}
EXIF_IFD, USER_COMMENT = 0x8769, 0x9286
MAX_METADATA = 2**16  # characters
# The first eight bytes of a UserComment name its encoding (EXIF 2.32, table 9). Text in Unicode has
# the byte order of the EXIF block, which Pillow writes as big endian.
ASCII, UNICODE = b"ASCII\0\0\0", b"UNICODE\0"


def can_write(ending: str) -> bool:
    """Return whether this Pillow writes the format of an ending in `FORMATS`."""
    Image.init()
    return FORMATS[ending] in Image.SAVE


def encode(image: Image.Image, ending: str, metadata: dict[str, Any]) -> bytes:
    """Return the bytes of a picture file that tells how the picture was made."""
    written = FORMATS[ending.lower()]
    text = json_text(metadata, ensure_ascii=False)
    if any("\ud800" <= letter <= "\udfff" for letter in text):  # of a file's name in other bytes
        text = json_text(metadata)
    options = dict(QUALITY[written])
    if written == "PNG":
        options["pnginfo"] = info = PngInfo()
        info.add_itxt(METADATA_KEY, text)
        if "prompt" in metadata:
            shown = parameters(metadata).encode(errors="backslashreplace").decode()
            info.add_itxt(PARAMETERS_KEY, shown)
    else:
        exif = Image.Exif()
        comment = ASCII + text.encode() if text.isascii() else UNICODE + text.encode("utf-16-be")
        exif.get_ifd(EXIF_IFD)[USER_COMMENT] = comment
        options["exif"] = exif.tobytes()
    file = io.BytesIO()
    image.save(file, format=written, **options)
    return file.getvalue()


def read_metadata(file: Path | io.BytesIO) -> dict[str, Any] | None:
    """Return what a picture file tells about how it was made; None if it tells nothing.

    It is text that anybody may have written: JSON of at most `MAX_METADATA` characters.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=tuple(QUALITY)) as picture:
                text = _text(picture)
        values = json.loads(text) if len(text) <= MAX_METADATA else None
    except Exception:  # of decoders, each of which raises its own kinds, or of JSON
        return None
    return values if isinstance(values, dict) else None


def check_metadata(file: Path, metadata: dict[str, Any]) -> None:
    """Raise ValueError if a file of this ending cannot tell its arguments, before any drawing."""
    try:
        data = encode(Image.new("RGB", (16, 16)), file.suffix, metadata)
    except ValueError:  # too long for the format
        data = b""
    if read_metadata(io.BytesIO(data)) != json.loads(json.dumps(metadata)):
        length = len(json.dumps(metadata))
        raise ValueError(
            f"{file}: its arguments, {length} characters, are more than the file can hold; make "
            "the prompts shorter"
        )


def parameters(metadata: dict[str, Any]) -> str:
    """Return the arguments as AUTOMATIC1111's web UI and the tools after it write them."""
    loras = (source.rpartition("=") for source in metadata["lora"])
    lines = [" ".join([metadata["prompt"], *(f"<lora:{Path(x).stem}:{w}>" for x, _, w in loras)])]
    if metadata["negative_prompt"]:
        lines.append(f"Negative prompt: {metadata['negative_prompt']}")
    facts = {
        "Steps": len(metadata["sigmas"] or ()) or metadata["num_inference_steps"],
        "Sampler": "Euler",
        "CFG scale": metadata["true_cfg_scale"],
        "Distilled CFG Scale": metadata["guidance_scale"],
        "Seed": metadata["seed"],
        "Size": f"{metadata['width']}x{metadata['height']}",
        "Denoising strength": metadata.get("strength"),
        "Model": Path(metadata["model"]).name,
        "Version": f"ic_jax {metadata['ic_jax']}",
    }
    told = {name: _quoted(value) for name, value in facts.items() if value is not None}
    lines.append(", ".join(f"{name}: {text}" for name, text in told.items()))
    return "\n".join(lines)


def _quoted(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return json.dumps(text) if any(c in text for c in ',:\n"') else text


def _text(picture: Image.Image) -> str:
    """Return the JSON text in an opened picture; an exception if there is none."""
    if METADATA_KEY in picture.info:
        return picture.info[METADATA_KEY]
    exif = picture.getexif()
    comment = exif.get_ifd(EXIF_IFD)[USER_COMMENT]
    encoding, text = comment[: len(ASCII)], comment[len(ASCII) :]
    if encoding == UNICODE:
        return text.decode("utf-16-le" if exif.endian == "<" else "utf-16-be")
    return text.decode("ascii")
