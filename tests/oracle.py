"""PyTorch models as oracles: random weights, and their conversion to our modules."""

import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch

from ic_jax.weights.loading import load_component
from tests.conftest import convert


def randomize(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Draw every parameter at random, so that no scale of 1 or bias of 0 hides a fault."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim >= 2:
                p.copy_(noise / (p[0].numel() ** 0.5))
            else:
                p.copy_((1.0 if name.endswith("weight") else 0.0) + 0.2 * noise)
    return model.eval()


# Published class -> component, and the option that takes it.
COMPONENTS = {
    "FluxTransformer2DModel": ("transformer", "--flux"),
    "AutoencoderKL": ("vae", "--vae"),
    "T5EncoderModel": ("t5", "--t5"),
    "CLIPTextModel": ("clip", "--clip"),
    "SiglipVisionModel": ("siglip", "--siglip"),
    "Dinov2Model": ("dinov2", "--dinov2"),
}


def converted(theirs: Any) -> Any:
    """Return our module of a published model, which is saved by its library and converted."""
    kind, option = COMPONENTS[type(theirs).__name__]
    with tempfile.TemporaryDirectory() as folder:
        published, model = Path(folder) / "published", Path(folder) / "MODEL"
        theirs.save_pretrained(published)
        convert("from-torch", option, published, "--out", model)
        return load_component(model, kind)


def relative(a: Any, b: Any) -> float:
    """Return the norm of the difference, divided by the norm of `b`."""
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    assert a.shape == b.shape, (a.shape, b.shape)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def cast(model: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(dtype), model)
