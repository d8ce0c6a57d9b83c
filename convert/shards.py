"""Files of weights in a folder of diffusers or transformers: whole, sharded, or a variant."""

from collections.abc import Callable
from pathlib import Path

from convert.configs import read_object
from ic_jax.from_dict import first_few
from ic_jax.weights.tensors import Tensor, WeightsError

STEMS = ("diffusion_pytorch_model", "model")  # file names of diffusers and transformers
VARIANTS = ("", ".bf16", ".fp16")  # in the order of preference
ENDINGS = (".safetensors", ".safetensors.index.json")
TORCH_ENDINGS = (".bin", ".bin.index.json")


def weights_file(folder: Path) -> Path:
    """Return the file of a folder's weights, or the index of their shards.

    safetensors before torch's .bin, and a file as published before a variant of less precision.

    Raises:
        WeightsError: the folder has none.
    """
    names = [
        *(stem + variant + end for variant in VARIANTS for stem in STEMS for end in ENDINGS),
        # transformers puts a variant's name after "index"
        *(f"{stem}.safetensors.index{v}.json" for v in VARIANTS[1:] for stem in STEMS),
        *(stem + end for stem in ("pytorch_model", STEMS[0]) for end in TORCH_ENDINGS),
    ]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    others = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".safetensors"))
    raise WeightsError(
        f"{folder}: has no {STEMS[0]}.safetensors or {STEMS[1]}.safetensors"
        + (f", only {first_few(others, 5)}; give one of these files instead" if others else "")
    )


def read_shards(index: Path, read: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors of all shards that an index names, each read by `read`.

    Raises:
        WeightsError: a shard is missing, or the shards differ from the index.
    """
    where = read_object(index).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(f, str) for f in where.values()):
        raise WeightsError(f"{index}: has no weight_map; download or copy it again")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(where.values())):
        shard = index.parent / name
        if Path(name).name != name or not shard.is_file():
            raise WeightsError(f"{shard}: is missing, and {index.name} names it; download it again")
        new = read(shard)
        if twice := sorted(tensors.keys() & new.keys()):
            raise WeightsError(f"{shard}: {twice[0]} is in another shard too; download both again")
        tensors |= new
    if unmatched := sorted(tensors.keys() ^ where.keys()):
        raise WeightsError(
            f"{index}: differs from its shards by {len(unmatched)} keys: {first_few(unmatched)}; "
            "download them again"
        )
    return tensors
