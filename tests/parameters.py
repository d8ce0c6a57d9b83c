"""Every parameter of the published sizes, as text: name, shape, dtype, logical axes.

`python -m tests.parameters` writes tests/goldens/parameters/*.txt anew; the diff is then a
change of architecture to be reviewed.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from ic_jax.config import CONFIGS, FLUX_DEV
from ic_jax.models.adapter import Adapter
from ic_jax.models.clip import ClipText
from ic_jax.models.dinov2 import Dinov2
from ic_jax.models.flux import Flux
from ic_jax.models.siglip import SiglipVision
from ic_jax.models.t5 import T5Encoder
from ic_jax.models.vae import Vae

FOLDER = Path(__file__).parent / "goldens" / "parameters"
MODELS: dict[str, Callable[..., Any]] = {
    "flux-dev": Flux,
    "flux-schnell": Flux,
    "instantcharacter": lambda config, rngs: Adapter(config, FLUX_DEV, rngs=rngs),
    "siglip-so400m-384": SiglipVision,
    "dinov2-giant": Dinov2,
    "t5-xxl": T5Encoder,
    "clip-l": ClipText,
    "flux-vae": Vae,
}


def full_size(name: str) -> Any:
    """The published model with shapes for parameters."""
    return nnx.eval_shape(lambda: MODELS[name](CONFIGS[name], rngs=nnx.Rngs(0)))


def count(model: Any) -> int:
    return sum(x.size for x in jax.tree.leaves(model))


def listing(model: Any) -> str:
    lines = [f"{count(model)} parameters"]
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        axes = ", ".join(str(axis or "-") for axis in variable.axes)
        assert len(variable.axes) == len(variable.shape), path
        shape = ", ".join(map(str, variable.shape))
        lines.append(f"{'.'.join(map(str, path))} [{shape}] {variable.dtype} ({axes})")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in MODELS:
        (FOLDER / f"{name}.txt").write_text(listing(full_size(name)))
