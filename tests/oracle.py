"""PyTorch models as oracles: random weights, and the way from one to ours."""

import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch

from convert.commands import main
from ic_jax.weights.loading import load_component


def randomize(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Draw every parameter away from its initial value, so that no scale or bias hides."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim >= 2:
                p.copy_(noise / (p[0].numel() ** 0.5))
            else:
                p.copy_((1.0 if name.endswith("weight") else 0.0) + 0.2 * noise)
    return model.eval()


# Which component a published class is, and the option that takes it.
COMPONENTS = {
    "FluxTransformer2DModel": ("transformer", "--flux"),
    "AutoencoderKL": ("vae", "--vae"),
    "T5EncoderModel": ("t5", "--t5"),
    "CLIPTextModel": ("clip", "--clip"),
    "SiglipVisionModel": ("siglip", "--siglip"),
    "Dinov2Model": ("dinov2", "--dinov2"),
}


def convert(*arguments: Any) -> None:
    """python -m convert from-torch ..., which must succeed."""
    assert main(["from-torch", *map(str, arguments)]) == 0


def converted(theirs: Any) -> Any:
    """The same model as ours: saved by its own library, converted on disk, loaded."""
    kind, option = COMPONENTS[type(theirs).__name__]
    with tempfile.TemporaryDirectory() as folder:
        published, model = Path(folder) / "published", Path(folder) / "MODEL"
        theirs.save_pretrained(published)
        convert(option, published, "--out", model)
        return load_component(model, kind)


def relative(a: Any, b: Any) -> float:
    """Norm of the difference over the norm of `b`."""
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    assert a.shape == b.shape, (a.shape, b.shape)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def cast(model: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(dtype), model)
