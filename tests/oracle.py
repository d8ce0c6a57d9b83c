"""PyTorch models as oracles: random weights, and the way from one to ours."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx


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


def fill(make: Any, state_dict: dict[str, torch.Tensor], rename: dict[str, str] | None = None) -> Any:
    """The module that `make()` builds, its parameters taken from `state_dict`."""
    model = nnx.eval_shape(make)
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        name = ".".join(map(str, path))
        kernel = name.endswith(".kernel")
        name = name.removesuffix("kernel") + "weight" if kernel else name
        name = (rename or {}).get(name, name)
        count = variable.shape[0] if "*" in name else 1
        parts = [state_dict[name.replace("*", str(i))].detach().float().numpy() for i in range(count)]
        if kernel:
            parts = [p.T if p.ndim == 2 else p.transpose(2, 3, 1, 0) for p in parts]
        value = np.stack(parts) if "*" in name else parts[0]
        assert value.shape == variable.shape, (name, value.shape, variable.shape)
        variable.set_value(jnp.asarray(value))
    return model


def relative(a: Any, b: Any) -> float:
    """Norm of the difference over the norm of `b`."""
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    assert a.shape == b.shape, (a.shape, b.shape)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def cast(model: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(dtype), model)
