"""Golden files: weights, which go through the real converter, inputs and expected outputs."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from safetensors import safe_open
from safetensors.torch import save_file

from ic_jax.models.features import SubjectFeatures
from ic_jax.weights.loading import load_component
from tests.conftest import convert


class Golden:
    """A file of tests/goldens; `golden[name]` is one of its tensors."""

    def __init__(self, file: Path, folder: Path):
        with safe_open(file, "pt") as f:
            self.config = json.loads(f.metadata()["config"])
            self.tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
        self._folder, self._transformer = folder, folder / "transformer"
        self._transformer.mkdir()
        weights = self._transformer / "diffusion_pytorch_model.safetensors"
        save_file(self.group("transformer/"), weights)
        sizes = {"_class_name": "FluxTransformer2DModel", **self.config["transformer"]}
        (self._transformer / "config.json").write_text(json.dumps(sizes))
        self.adapter = self.adapter_at("")
        self.flux = load_component(folder / "MODEL-", "transformer")

    def adapter_at(self, prefix: str) -> Any:
        """Return the adapter whose published tensors have names that start with `prefix`."""
        name = prefix.replace("/", "-").strip("-")
        file = self._folder / f"adapter-{name}.safetensors"
        groups = ("image_proj", "ip_adapter")
        published = {f"{g}.{k}": v for g in groups for k, v in self.group(f"{prefix}{g}/").items()}
        save_file(published, file)
        file.with_suffix(".json").write_text(json.dumps(self.config["projector"]))
        model = self._folder / f"MODEL-{name}"
        convert("from-torch", "--flux", self._transformer, "--adapter", file, "--out", model)
        return load_component(model, "adapter")

    def group(self, prefix: str) -> dict[str, Any]:
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    def features(self, prefix: str) -> SubjectFeatures:
        return SubjectFeatures(*(self[f"{prefix}{name}"] for name in SubjectFeatures._fields))

    def __getitem__(self, name: str) -> Any:
        return jnp.asarray(self.tensors[name].numpy())
