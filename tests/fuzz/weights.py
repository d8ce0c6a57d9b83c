"""Readers of weights, configs and tokenizers."""

import json
from pathlib import Path

import numpy as np

from tests.fuzz.edits import JSON, SAFETENSORS, TORCH, as_json
from tests.fuzz.reader import TOY, Reader


def _arrays() -> dict[str, np.ndarray]:
    return {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float16)}


def _write_safetensors(folder: Path) -> None:
    from safetensors.numpy import save_file

    save_file(_arrays(), folder / "a.safetensors", {"format": "pt"})


def _read_weights(file: Path) -> None:
    from convert.containers import read_file

    for tensor in read_file(file).tensors.values():
        tensor.array()


def _write_torch(folder: Path) -> None:
    from convert.torch_write import write_torch
    from ic_jax.weights.safetensors_io import Spec

    arrays = _arrays()
    specs = {"group": {name: Spec(x.dtype, x.shape) for name, x in arrays.items()}}
    write_torch(folder / "a.bin", specs, lambda _, name: arrays[name])


def _write_gguf(folder: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(folder / "a.gguf", "flux")
    writer.add_tensor("a", np.ones((2, 32), np.float32))
    blocks = gguf.quants.quantize(np.ones((2, 32), np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("b", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_published(folder: Path) -> None:
    for file in TOY.glob("*/published.json"):
        (folder / f"{file.parent.name}.json").write_bytes(file.read_bytes())


def _read_published(folder: Path) -> None:
    from convert.sources import read_config

    for file in folder.iterdir():
        read_config(file.stem, file)


COMPONENTS = ("transformer", "adapter", "siglip", "dinov2", "t5", "clip", "vae", "scheduler")


def _write_configs(folder: Path) -> None:
    for name in COMPONENTS:
        (folder / name).mkdir()
        (folder / name / "config.json").write_bytes((TOY / name / "config.json").read_bytes())


def _read_configs(folder: Path) -> None:
    from ic_jax.weights.loading import check_folder, read_config
    from ic_jax.weights.model_folder import ModelFolder

    model = ModelFolder(folder, {name: {} for name in COMPONENTS})
    for name in COMPONENTS:
        read_config(model, name)
    check_folder(model)


def _write_manifest(folder: Path) -> None:
    from ic_jax.weights.model_folder import create

    with create(folder / "model") as writer:
        writer.add_config("scheduler", {"shift": 3.0})
        writer.add_file("tokenizer", "tokenizer.json", b"{}")


def _read_manifest(folder: Path) -> None:
    from ic_jax.weights.model_folder import ModelFolder

    ModelFolder.open(folder / "model").verify()


def _write_lora(folder: Path) -> None:
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    start = "base_model.model.transformer_blocks.0.attn"
    shapes = {"to_q.lora_A": (2, 8), "to_q.lora_B": (8, 2), "to_k.lora_A": (2, 8)}
    shapes["to_k.lora_B"] = (8, 2)
    arrays = {
        f"{start}.{n}.weight": rng.standard_normal(shape).astype(np.float32)
        for n, shape in shapes.items()
    }
    settings = {"lora_alpha": 4, "alpha_pattern": {"to_q": 2}, "use_rslora": False, "r": 2}
    header = {f"transformer.{k}": v for k, v in settings.items()}
    save_file(arrays, folder / "a.safetensors", {"lora_adapter_metadata": json.dumps(header)})
    (folder / "adapter_config.json").write_bytes(as_json(settings))


def _read_lora(folder: Path) -> None:
    from ic_jax.weights.lora.reading import read_lora

    read_lora(folder / "a.safetensors")


def _write_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).write_bytes((TOY / "tokenizer" / name).read_bytes())


def _read_tokenizer(folder: Path) -> None:
    from ic_jax.preprocessing.tokenizers import load_tokenizer
    from ic_jax.weights.fit import largest_id

    largest_id((folder / "tokenizer.json").read_bytes())
    load_tokenizer(folder, "!").encode("a red hat, <|endoftext|>", 16)


READERS = {
    "safetensors": Reader(
        _write_safetensors,
        lambda folder: _read_weights(folder / "a.safetensors"),
        {"*": SAFETENSORS},
    ),
    "torch": Reader(_write_torch, lambda folder: _read_weights(folder / "a.bin"), {"*": TORCH}),
    "gguf": Reader(_write_gguf, lambda folder: _read_weights(folder / "a.gguf")),
    "published-configs": Reader(_write_published, _read_published, {"*": JSON}),
    "model-configs": Reader(_write_configs, _read_configs, {"*": JSON}),
    "model-manifest": Reader(_write_manifest, _read_manifest, {"*": JSON}),
    "lora": Reader(_write_lora, _read_lora, {"*.safetensors": SAFETENSORS, "*.json": JSON}),
    "tokenizer": Reader(_write_tokenizer, _read_tokenizer, {"*": JSON}),
}
