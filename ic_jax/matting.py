"""Matting networks: ONNX files that find the figure in a picture, run by onnxruntime."""

import tempfile
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from ic_jax.from_dict import first_few
from ic_jax.models.features import IMAGENET_SCALE
from ic_jax.untrusted_files import read_bytes
from ic_jax.weights import hub

MAX_BYTES = 2 * 1024**3  # of an ONNX file that holds its weights itself
SIDE = 1024  # pixels of the input, where the network leaves it open; BiRefNet's
MAX_SIDE = 4096  # that a network may ask for
SUFFIX = ".onnx"
ISNET = "isnet:"  # precedes the source of a network whose pixels are 0..1 minus a half
ISNET_SCALE = ((0.5, 0.5, 0.5), (1.0, 1.0, 1.0))  # mean, std (xuebinqin/DIS)
Scale = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std of each channel
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"  # a setting of onnxruntime


class OnnxMatting:
    """Matting network of one picture in and its opacity out.

    BiRefNet, U2-Net and their kin take pictures normalised as for ImageNet. ISNet takes them minus
    a half, which nothing in its file says: its source is written `isnet:MODEL`. An output beyond
    0..1 is taken for logits. Mind the network's licence: BiRefNet's is MIT, others forbid
    commercial use.
    """

    def __init__(self, source: Path | str):
        """Load a network.

        Args:
            source: an ONNX file with its weights in it; or a Hub id, org/name or
                org/name@revision, of a repository with one such file, or with /FILE; after
                `isnet:` of an ISNet.

        Raises:
            FileNotFoundError: no such file or repository.
            ModuleNotFoundError: onnxruntime is not installed.
            ValueError: not such a network.
        """
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            remedy = "matting needs onnxruntime; pip install 'ic-jax[matting]'"
            raise ModuleNotFoundError(remedy, name=error.name) from None
        scale, place = split_scale(str(source))
        self._scale, file = scale, _find(place)
        data, options = read_bytes(file, limit=MAX_BYTES), onnxruntime.SessionOptions()
        try:
            with tempfile.TemporaryDirectory() as empty:  # the network may name no file of weights
                options.log_severity_level = 3  # errors; they are raised as well
                options.add_session_config_entry(WEIGHTS_FOLDER, empty)
                providers = ["CPUExecutionProvider"]
                self._session = onnxruntime.InferenceSession(data, options, providers)
        except Exception as error:  # of its own kinds, in several lines
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"{source}: is no ONNX network that can be run ({reason})") from None
        inputs = self._session.get_inputs()
        shape = inputs[0].shape if len(inputs) == 1 else []
        if len(shape) != 4 or shape[1] != 3 or inputs[0].type != "tensor(float)":
            raise ValueError(
                f"{source}: does not take one picture, float32 [1, 3, height, width]; give another "
                "matting network"
            )
        self._source, self._name = str(source), inputs[0].name
        self._size = [n if isinstance(n, int) and n > 0 else SIDE for n in shape[2:]]
        if max(self._size) > MAX_SIDE:
            raise ValueError(
                f"{source}: takes pictures of {self._size} pixels, more than {MAX_SIDE}"
            )

    def __call__(self, picture: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w"]:
        """Return the opacity of the figure, 0..1; ValueError if the network returns none."""
        height, width = self._size
        image = Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR)
        mean, std = (np.array(x, np.float32) for x in self._scale)
        pixels = (np.asarray(image, np.float32) / 255 - mean) / std
        batch = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
        output = self._session.run(None, {self._name: batch})[0]
        opacity = np.asarray(output, np.float32).squeeze()
        if opacity.ndim != 2 or not np.isfinite(opacity).all():
            raise ValueError(
                f"{self._source}: returned {list(np.shape(output))} numbers that are no opacity; "
                "give another matting network"
            )
        if opacity.min() < 0 or opacity.max() > 1:
            opacity = 0.5 * (1 + np.tanh(0.5 * opacity))  # the logistic function
        resized = Image.fromarray(opacity.astype(np.float32)).resize(picture.shape[1::-1])
        return np.clip(np.asarray(resized), 0, 1)


def split_scale(source: str) -> tuple[Scale, str]:
    """Return mean and std of a network's pixels, and its source without the prefix."""
    place = source.removeprefix(ISNET)
    return (IMAGENET_SCALE if place == source else ISNET_SCALE), place


def _find(source: str) -> Path:
    """Return the ONNX file of a source, downloading what is not there."""
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if (named := hub.split_source(source, SUFFIX)) is None:
        raise FileNotFoundError(f"{source}: no such ONNX file, and not a Hub id (org/name)")
    repo_id, revision, file = named
    if file is None:
        files = sorted(x for x in hub.file_names(repo_id, revision) if x.endswith(SUFFIX))
        if len(files) != 1:
            raise ValueError(
                f"{source}: has {len(files)} ONNX files, {first_few(files)}; name one as "
                f"{source}/FILE"
            )
        (file,) = files
    found = hub.fetch(repo_id, [file], revision) / file
    if not found.is_file():
        raise FileNotFoundError(f"{repo_id}: the Hub repository has no file {file}")
    return found
