"""Files of weights in every layout that people have: they give the model that folders give."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import gguf
import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from diffusers import AutoencoderKL, FluxTransformer2DModel

from convert.commands import main
from convert.containers import read_file
from convert.from_torch import published_tokenizer
from convert.layouts import LLAMA
from ic_jax.weights import hub
from ic_jax.weights.model_folder import ModelFolder
from tests.conftest import TINY, convert

FLUX, VAE = "flux/transformer", "flux/vae"
T5, CLIP = "flux/text_encoder_2", "flux/text_encoder"
OPTIONS = {"--flux": FLUX, "--vae": VAE, "--t5": T5, "--clip": CLIP}
OPTIONS |= {"--siglip": "siglip", "--dinov2": "dinov2"}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Models whose heads are as wide as the published ones, as diffusers and transformers save."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("published")
    flux = {"num_layers": 1, "num_single_layers": 2, "num_attention_heads": 1}
    flux |= {"in_channels": 16, "joint_attention_dim": 32, "pooled_projection_dim": 64}
    small = {"num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 64}
    levels = ["DownEncoderBlock2D"] * 2, ["UpDecoderBlock2D"] * 2
    models = {
        FLUX: FluxTransformer2DModel(**flux, guidance_embeds=True),
        VAE: AutoencoderKL(
            down_block_types=levels[0],
            up_block_types=levels[1],
            block_out_channels=(32, 64),
            latent_channels=4,
            layers_per_block=2,
            use_quant_conv=False,
            use_post_quant_conv=False,
            scaling_factor=0.3611,
            shift_factor=0.1159,
        ),
        T5: transformers.T5EncoderModel(
            transformers.T5Config(
                vocab_size=50,
                d_model=32,
                d_kv=16,
                d_ff=64,
                num_layers=2,
                num_heads=2,
                feed_forward_proj="gated-gelu",
            )
        ),
        CLIP: transformers.CLIPTextModel(
            transformers.CLIPTextConfig(**small, vocab_size=50, hidden_size=64, eos_token_id=2)
        ),
        "siglip": transformers.SiglipVisionModel(
            transformers.SiglipVisionConfig(**small, hidden_size=72, image_size=28, patch_size=14)
        ),
        "dinov2": transformers.Dinov2Model(
            transformers.Dinov2Config(
                hidden_size=64, num_hidden_layers=2, num_attention_heads=1, image_size=28
            )
        ),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
    (folder / "flux" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    return folder


@pytest.fixture(scope="module")
def whole(published, tmp_path_factory):
    """The MODEL of these folders."""
    out = tmp_path_factory.mktemp("whole") / "MODEL"
    folders = ("--flux", published / "flux", "--siglip", published / "siglip")
    convert("from-torch", *folders, "--dinov2", published / "dinov2", "--out", out)
    return out


@pytest.fixture(scope="module")
def bfl(whole, tmp_path_factory):
    """FLUX and the VAE under BFL's names."""
    out = tmp_path_factory.mktemp("bfl") / "out"
    convert("to-torch", whole, "--out", out, "--bfl")
    return {
        name: safetensors.torch.load_file(out / f"{stem}.safetensors")
        for name, stem in ((FLUX, "flux1-dev"), (VAE, "ae"))
    }


def tensors_of(published, name):
    (file,) = (published / name).glob("*.safetensors")
    return safetensors.torch.load_file(file)


def parameters(model, component):
    return {name: t.array() for name, t in ModelFolder.open(model).tensors(component).items()}


def check_same(model, expected, components):
    for component in components:
        ours, theirs = parameters(model, component), parameters(expected, component)
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            np.testing.assert_array_equal(ours[name], value, err_msg=name)
        configs = [ModelFolder.open(m).json(component) for m in (model, expected)]
        assert configs[0] == configs[1], component


SCALES = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}  # places of a block's float16 scales
COMPONENTS = ("transformer", "vae", "t5", "clip", "siglip", "dinov2")


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module.", "model."])
def test_a_file_a_component(published, whole, tmp_path, prefix, capsys):
    """Published names in single files without a config beside them, and wrappers' prefixes."""
    command = []
    for option, name in OPTIONS.items():
        path = tmp_path / f"{option[2:]}-file.safetensors"
        tensors = {prefix + n: t for n, t in tensors_of(published, name).items()}
        safetensors.torch.save_file(tensors, path)
        command += [option, path]
    convert("from-torch", *command, "--out", tmp_path / "MODEL")
    check_same(tmp_path / "MODEL", whole, COMPONENTS)
    notes = capsys.readouterr().err
    assert "clip-file.safetensors: sizes follow from its tensors; as published are heads" in notes
    assert "no tokenizer for clip; give --tokenizer" in notes


def test_all_in_one(published, whole, bfl, tmp_path, capsys):
    """One file of ComfyUI's serves four options, and what is of none is named."""
    parts = {
        "model.diffusion_model.": bfl[FLUX],
        "vae.": bfl[VAE],
        "text_encoders.t5xxl.transformer.": tensors_of(published, T5),
        "text_encoders.clip_l.transformer.": tensors_of(published, CLIP),
    }
    everything = {p + n: t.clone() for p, part in parts.items() for n, t in part.items()}
    everything["text_encoders.clip_l.logit_scale"] = torch.ones(())
    path = tmp_path / "all.safetensors"
    safetensors.torch.save_file(everything, path)
    convert("from-torch", "--flux", path, "--out", tmp_path / "MODEL")
    check_same(tmp_path / "MODEL", whole, ("transformer", "vae", "t5", "clip"))
    note = "leaves out 1 entries that are of none: text_encoders.clip_l.logit_scale"
    assert note in capsys.readouterr().err

    convert("inspect", path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{path}: plain"
    assert re.match(r"  transformer  BFL .* float32  under model\.diffusion_model\.", lines[1])
    assert "  and 1 entries that are of none: text_encoders.clip_l.logit_scale" in lines


@pytest.mark.parametrize("newer", [False, True])
@pytest.mark.parametrize("by_row", [False, True])
def test_scaled_fp8(bfl, tmp_path, newer, by_row):
    """Values times scale, exactly, under ComfyUI's older and newer names; --dtype decides."""
    tensors, expected = {}, {}
    rng = np.random.default_rng(0)
    for name, value in bfl[FLUX].items():
        tensors[name] = expected[name] = value
        if value.ndim == 2:
            scale = torch.tensor(rng.random((value.shape[0], 1) if by_row else ()) + 1).float()
            eight = (value / scale).to(torch.float8_e4m3fn)
            module = name.removesuffix("weight")
            tensors[name], expected[name] = eight, eight.float() * scale
            tensors[module + ("weight_scale" if newer else "scale_weight")] = scale
            if newer:
                text = b'{"format": "float8_e4m3fn"}'
                tensors[module + "comfy_quant"] = torch.frombuffer(
                    bytearray(text), dtype=torch.uint8
                )
            else:
                tensors[module + "scale_input"] = torch.ones(())
    if not newer:
        tensors["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    safetensors.torch.save_file(tensors, tmp_path / "fp8.safetensors")
    safetensors.torch.save_file(expected, tmp_path / "float32.safetensors")
    for name in ("fp8", "float32"):
        path = tmp_path / f"{name}.safetensors"
        convert("from-torch", "--flux", path, "--dtype", "float32", "--out", tmp_path / name)
    check_same(tmp_path / "fp8", tmp_path / "float32", ["transformer"])
    convert("from-torch", "--flux", tmp_path / "fp8.safetensors", "--out", tmp_path / "default")
    dtypes = {x.dtype for x in parameters(tmp_path / "default", "transformer").values()}
    assert dtypes == {np.dtype(ml_dtypes.bfloat16)}


def quantised(array, kind):
    """Quantise, or make random blocks of formats that the package only reads, with small scales."""
    if kind.name not in SCALES:
        return gguf.quants.quantize(array, kind)
    values, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = np.random.default_rng(0).integers(0, 256, (array.size // values, size), np.uint8)
    for start in SCALES[kind.name]:
        blocks[:, start : start + 2] = np.array([0.01], np.float16).view(np.uint8)
    return blocks.reshape(len(array), -1)


def write_gguf(path, architecture, tensors, kind):
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in tensors.items():
        array = value.float().numpy()
        if array.ndim == 2 and array.shape[1] % gguf.GGML_QUANT_SIZES[kind][0] == 0:
            writer.add_tensor(name, quantised(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file):
        write()
    writer.write_tensors_to_file()
    writer.close()


def llama_names(tensors):
    """T5's tensors under llama.cpp's names, by the published correspondence."""
    modules = {theirs: ours for ours, theirs in LLAMA.items()}
    renamed = {}
    for name, value in tensors.items():
        module, _, last = name.rpartition(".")
        starred = re.sub(r"block\.\d+", "block.*", module)
        number = "".join(re.findall(r"block\.(\d+)", module))
        if name != "encoder.embed_tokens.weight":
            renamed[f"{modules[starred].replace('*', number)}.{last}"] = value
    return renamed


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "BF16", "F16", *SCALES])
def test_gguf(published, bfl, tmp_path, kind):
    """FLUX and T5 as the package dequantises them; CLIP from a folder beside them."""
    sources = {"flux": bfl[FLUX], "t5": llama_names(tensors_of(published, T5))}
    command = []
    for name, tensors in sources.items():
        path = tmp_path / f"{name}.gguf"
        write_gguf(path, name, tensors, getattr(gguf.GGMLQuantizationType, kind))
        command += [f"--{name}", path]
    clip = ("--clip", published / CLIP, "--dtype", "float32")
    convert("from-torch", *command, *clip, "--out", tmp_path / "MODEL")
    exact = {}
    for name in sources:
        reader = gguf.GGUFReader(tmp_path / f"{name}.gguf")
        exact[name] = {
            t.name: torch.tensor(
                gguf.quants.dequantize(t.data, t.tensor_type).reshape(*reversed(t.shape.tolist()))
            )
            for t in reader.tensors
        }
    safetensors.torch.save_file(exact["flux"], tmp_path / "flux.safetensors")
    names = [n for n in tensors_of(published, T5) if n != "encoder.embed_tokens.weight"]
    t5 = dict(zip(llama_names(dict.fromkeys(names)), names, strict=True))
    safetensors.torch.save_file(
        {t5[n]: x for n, x in exact["t5"].items()}, tmp_path / "t5.safetensors"
    )
    files = ("--flux", tmp_path / "flux.safetensors", "--t5", tmp_path / "t5.safetensors")
    convert("from-torch", *files, *clip, "--out", tmp_path / "exact")
    check_same(tmp_path / "MODEL", tmp_path / "exact", ("transformer", "t5", "clip"))
    storage = f"GGUF ({', '.join(sorted(('F32', kind)))})"
    assert read_file(tmp_path / "flux.gguf").storage == storage


def test_variants_and_shards(published, whole, tmp_path):
    """fp16 variants and their indexes, torch's own shards; the plain file comes first."""
    tensors = tensors_of(published, CLIP)
    config = (published / CLIP / "config.json").read_text()
    halves = sorted(tensors)[:9], sorted(tensors)[9:]

    def folder(name, save, stem, end, index):
        path = tmp_path / name
        path.mkdir()
        (path / "config.json").write_text(config)
        where = {}
        for i, names in enumerate(halves, 1):
            file = f"{stem}-0000{i}-of-00002{end}"
            save({n: tensors[n] for n in names}, path / file)
            where |= dict.fromkeys(names, file)
        (path / index).write_text(json.dumps({"weight_map": where}))
        return path

    safe, pickled = safetensors.torch.save_file, torch.save
    paths = [
        folder("a", safe, "model.fp16", ".safetensors", "model.safetensors.index.fp16.json"),
        folder("b", pickled, "pytorch_model", ".bin", "pytorch_model.bin.index.json"),
    ]
    for path in paths:
        convert("from-torch", "--clip", path, "--out", path / "MODEL")
        check_same(path / "MODEL", whole, ["clip"])
    plain, variant = paths[0] / "model.safetensors", paths[0] / "model.bf16.safetensors"
    safe({n: t.bfloat16() for n, t in tensors.items()}, variant)
    convert("from-torch", "--clip", paths[0], "--out", tmp_path / "variant")
    assert {x.dtype for x in parameters(tmp_path / "variant", "clip").values()} == {
        np.dtype(ml_dtypes.bfloat16)
    }
    safe(tensors, plain)
    convert("from-torch", "--clip", paths[0], "--out", tmp_path / "plain")
    check_same(tmp_path / "plain", whole, ["clip"])


def test_an_adapter_among_other_entries(tmp_path, capsys):
    """As a training program saves it: counters, an optimizer's state, the groups."""
    content = torch.load(TINY / "instantcharacter_ip-adapter.bin", weights_only=True)
    content |= {"epoch": 3, "global_step": 100, "optimizer": {"lr": [1e-4], "m": torch.zeros(2)}}
    torch.save(content, tmp_path / "adapter.ckpt")
    sizes = ("--adapter-config", TINY / "instantcharacter_ip-adapter.json")
    command = ("from-torch", "--flux", TINY / "flux", *sizes, "--adapter")
    convert(*command, tmp_path / "adapter.ckpt", "--out", tmp_path / "ckpt")
    names = "leaves out 4 entries that are of none: epoch, global_step, optimizer.lr, optimizer.m"
    assert names in capsys.readouterr().err
    convert(*command, TINY / "instantcharacter_ip-adapter.bin", "--out", tmp_path / "bin")
    check_same(tmp_path / "ckpt", tmp_path / "bin", ["adapter"])


def test_paths_as_people_have_them(published, whole, tmp_path, monkeypatch):
    """A repository's folder in the Hub's cache, ~, and a revision after @."""
    cached = tmp_path / "models--org--clip"
    commit = cached / "snapshots" / "0123"
    shutil.copytree(published / CLIP, commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123")
    monkeypatch.setenv("HOME", str(tmp_path))
    for i, name in enumerate(("~/models--org--clip", cached, cached / "snapshots" / "0123")):
        convert("from-torch", "--clip", name, "--out", tmp_path / f"{i}")
        check_same(tmp_path / f"{i}", whole, ["clip"])
    fetched = []

    def fetch(*arguments):
        fetched.append((arguments[0], arguments[2]))
        return commit

    monkeypatch.setattr(hub, "fetch", fetch)
    for name in ("org/clip@v2", "org/clip"):
        convert("from-torch", "--clip", name, "--out", tmp_path / name.replace("/", "-"))
    assert fetched == [("org/clip", "v2"), ("org/clip", None)]


def test_the_published_tokenizer_of_a_file(tmp_path, monkeypatch):
    """An encoder of the published vocabulary takes it; another one takes none."""
    fetched = []
    monkeypatch.setattr(hub, "fetch", lambda repo_id, _: fetched.append(repo_id) or tmp_path)
    for words, folder in ((49408, tmp_path), (50, None)):
        assert published_tokenizer("tokenizer", SimpleNamespace(vocab_size=words)) == folder
    assert published_tokenizer("tokenizer_2", SimpleNamespace(vocab_size=32128)) == tmp_path
    assert fetched == ["openai/clip-vit-large-patch14", "google/t5-v1_1-xxl"]


def test_damaged_files(published, bfl, tmp_path, capsys):
    """A scale without its tensor; a GGUF cut short; a cut transformer."""

    def error(path):
        assert main(["from-torch", "--flux", str(path), "--out", str(tmp_path / "MODEL")]) == 3
        assert main(["inspect", str(path)]) in (0, 3)
        return capsys.readouterr().err.splitlines()[0]

    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file({"a.scale_weight": torch.ones(())}, path)
    assert "a.scale_weight has the shape [], and a.weight is not there" in error(path)
    write_gguf(tmp_path / "x.gguf", "flux", bfl[FLUX], gguf.GGMLQuantizationType.Q8_0)
    cut = Path(tmp_path / "cut.gguf")
    cut.write_bytes((tmp_path / "x.gguf").read_bytes()[:-5000])
    assert "cut.gguf: is a damaged GGUF file" in error(cut)
    few = {n: t for n, t in bfl[FLUX].items() if not n.startswith(("double", "single"))}
    safetensors.torch.save_file(few, path)
    assert "is a damaged or cut transformer: has no 'double_blocks.0." in error(path)
