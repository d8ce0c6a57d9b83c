"""Refusals of conversion: one line each, and nothing left behind."""

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import safetensors.torch
import torch
from huggingface_hub import errors

from convert.commands import main
from convert.torch_read import read_torch
from ic_jax.weights import loading
from ic_jax.weights import safetensors_io as ours
from ic_jax.weights.model_folder import ModelFolder, create
from ic_jax.weights.tensors import WeightsError
from tests.conftest import TINY

ROOT = Path(__file__).parent.parent
TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
FIRST = {"txt_in.weight": (8, 8), "vector_in.in_layer.weight": (8, 8)}


@pytest.fixture
def flux(tmp_path):
    return Path(shutil.copytree(TINY / "flux", tmp_path / "flux"))


@pytest.fixture
def run(tmp_path, capsys):
    """Runs the command; gives its exit status and its error line, having checked that a
    failure left nothing and took one line."""

    def run(*arguments, out=tmp_path / "out" / "MODEL"):
        status = main([*map(str, arguments), *([] if out is None else ["--out", str(out)])])
        lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
        if status and out:
            assert not out.exists()
            assert not out.parent.exists() or not [*out.parent.iterdir()]
        assert len(lines) == bool(status)
        return status, "".join(lines)

    return run


def edit(path, change):
    """Rewrite a safetensors file with `change` applied to its dictionary of tensors."""
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    safetensors.torch.save_file(tensors, path)


def edit_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_everything_that_is_wrong_is_in_one_error(flux, run):
    def damage(tensors):
        for i in range(2):
            del tensors[f"transformer_blocks.{i}.attn.to_q.weight"]
        for i in range(12):
            tensors[f"extra.{i:02}"] = torch.zeros(1)
        tensors["proj_out.bias"] = torch.zeros(3)
        tensors["x_embedder.weight"][2, 3] = torch.nan
        tensors["single_transformer_blocks.1.proj_mlp.bias"][0] = torch.inf

    def damage_vae(tensors):
        del tensors["decoder.conv_in.bias"]

    edit(flux / TRANSFORMER, damage)
    edit(flux / "vae/diffusion_pytorch_model.safetensors", damage_vae)
    status, error = run("from-torch", "--flux", flux)
    assert status == 3
    for part in (
        f"{flux}/transformer: 2 missing: transformer_blocks.0.attn.to_q.weight, ",
        "; 12 unexpected: extra.00, extra.01, ",
        "extra.09, ...;",
        "; 1 misshapen: proj_out.bias [3], expected [16];",
        "; 2 not finite: single_transformer_blocks.1.proj_mlp.bias, x_embedder.weight;",
        f"{flux}/vae: 1 missing: decoder.conv_in.bias;",
    ):
        assert part in error
    assert "extra.10" not in error


def test_a_nan_alone_is_found_while_writing(flux, run):
    edit(flux / TRANSFORMER, lambda t: t["proj_out.bias"].fill_(torch.nan))
    assert "transformer: 1 not finite: proj_out.bias;" in run("from-torch", "--flux", flux)[1]


def test_an_overflow_of_the_type_asked_for_is_found(flux, run):
    edit(flux / TRANSFORMER, lambda t: t["proj_out.bias"].fill_(1e6))
    command = ("from-torch", "--flux", flux, "--dtype")
    assert "1 not finite: proj_out.bias;" in run(*command, "float16")[1]
    assert run(*command, "bfloat16")[0] == 0


def test_blocks_of_several_types_need_one_named(flux, run):
    name = "transformer_blocks.1.attn.to_q.weight"
    edit(flux / TRANSFORMER, lambda t: t.update({name: t[name].bfloat16()}))
    status, error = run("from-torch", "--flux", flux)
    assert status == 3
    assert "attn.to_q.kernel bfloat16 and float32 in different blocks, give --dtype" in error
    assert run("from-torch", "--flux", flux, "--dtype", "float32")[0] == 0


def test_integers_are_no_weights(flux, run):
    edit(flux / TRANSFORMER, lambda t: t.update({"proj_out.bias": t["proj_out.bias"].byte()}))
    assert "proj_out.bias uint8, expected floating point" in run("from-torch", "--flux", flux)[1]


@pytest.mark.parametrize(
    ("file", "values", "name"),
    [
        ("model_index.json", {"_class_name": "FluxFillPipeline"}, "FLUX.1 Fill"),
        ("model_index.json", {"_class_name": "StableDiffusion3Pipeline"}, "Stable Diffusion 3"),
        ("transformer/config.json", {"_class_name": "SD3Transformer2DModel"}, "Diffusion 3"),
        ("transformer/config.json", {"in_channels": 384, "out_channels": 64}, "FLUX.1 Fill"),
        ("transformer/config.json", {"in_channels": 128}, "FLUX.1 Depth or Canny"),
        ("transformer/config.json", {"_class_name": "UNet"}, "_class_name is 'UNet', expected"),
        ("transformer/config.json", {"patch_size": 2}, "patch_size 2, supported is 1"),
        ("transformer/config.json", {"axes_dims_rope": [8, 8, 8]}, r"do not add up"),
        ("vae/config.json", {"use_quant_conv": True}, "use_quant_conv True, supported is False"),
        ("text_encoder/config.json", {"hidden_act": "relu"}, "hidden_act 'relu' is none of"),
        ("text_encoder_2/config.json", {"feed_forward_proj": "relu"}, "feed_forward_proj 'relu'"),
        ("text_encoder_2/config.json", {"model_type": "bert"}, "model_type is 'bert'"),
        ("scheduler/scheduler_config.json", {"use_beta_sigmas": True}, "use_beta_sigmas True"),
    ],
)
def test_another_kind_of_model_is_named(flux, run, file, values, name):
    edit_json(flux / file, **values)
    status, error = run("from-torch", "--flux", flux)
    assert status == 3
    assert name in error
    assert str(flux / file) in error


def test_parts_that_do_not_fit_each_other(flux, run, tmp_path):
    """Refused before a weight is read, in conversion and at load, with both parts and numbers."""
    adapter = ("--adapter", TINY / "instantcharacter_ip-adapter.bin")
    towers = ("--siglip", TINY / "siglip", "--dinov2", TINY / "dinov2")
    convert = ("from-torch", "--flux", flux, *adapter, *towers)
    assert run(*convert, out=tmp_path / "good" / "MODEL")[0] == 0
    model = tmp_path / "good" / "MODEL"

    def change(component, file, **values):
        """Return the lines with which conversion and loading refuse changed values."""
        lines = []
        configs = {flux / file: True, model / component / "config.json": False}
        for path, converting in configs.items():
            before = path.read_text()
            edit_json(path, **values)
            path.write_text(path.read_text().ljust(len(before)))  # a MODEL knows its files' sizes
            if converting:
                lines.append(run(*convert)[1])
            else:
                with pytest.raises(WeightsError) as error:
                    loading.load_model(model, verify=False)
                lines.append(str(error.value))
            path.write_text(before)
        return lines

    for component, file, values, line in (
        (
            "t5",
            "text_encoder_2/config.json",
            {"d_model": 88},
            "88 channels come from T5, and FLUX takes",
        ),
        (
            "clip",
            "text_encoder/config.json",
            {"hidden_size": 88},
            "88 channels come from CLIP, and FLUX",
        ),
        (
            "vae",
            "vae/config.json",
            {"latent_channels": 5},
            "20 channels come from the VAE, and FLUX",
        ),
        ("t5", "text_encoder_2/config.json", {"vocab_size": 9}, "and T5 knows 9 words; give the"),
        ("clip", "text_encoder/config.json", {"vocab_size": 9}, "and CLIP knows 9 words; give"),
    ):
        assert all(line in refused for refused in change(component, file, **values)), line
    path = model / "adapter/config.json"
    size = path.stat().st_size
    edit_json(path, siglip_layers=[0, 1, 99])
    path.write_text(path.read_text().ljust(size))
    with pytest.raises(WeightsError, match="reads layer 99 of SigLIP, which has "):
        loading.load_model(model, verify=False)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"joint_blocks.0.x": (1,)}, "is Stable Diffusion 3"),
        ({"redux_up.weight": (1,)}, "is FLUX.1 Redux"),
        ({"a.lora_A.weight": (1,)}, "is a LoRA; draw with it: `python -m infer --lora FILE`"),
        (FIRST | {"img_in.weight": (8, 384)}, "is FLUX.1 Fill"),
        (FIRST | {"img_in.weight": (8, 128)}, "is FLUX.1 Depth or Canny"),
        (
            FIRST | {"img_in.weight": (8, 64)},
            "damaged or cut transformer: has no 'double_blocks.0.",
        ),
        (
            {"encoder.conv_in.weight": (8, 3, 3, 3)},
            "is nothing that ic_jax knows, by its 1 tensors",
        ),
    ],
)
def test_another_single_file_is_named(tmp_path, run, tensors, message):
    path = tmp_path / "flux1-dev.safetensors"
    safetensors.torch.save_file({k: torch.zeros(s) for k, s in tensors.items()}, path)
    status, error = run("from-torch", "--flux", path)
    assert status == 3
    assert message in error


def sharded(flux):
    folder = flux / "transformer"
    path = folder / "diffusion_pytorch_model.safetensors"
    tensors = safetensors.torch.load_file(path)
    path.unlink()
    names = sorted(tensors)
    where = {}
    for i, part in enumerate((names[:60], names[60:])):
        safetensors.torch.save_file({n: tensors[n] for n in part}, folder / f"{i}.safetensors")
        where |= dict.fromkeys(part, f"{i}.safetensors")
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    return folder, index, where


def test_shards_that_do_not_fit_their_index(flux, run):
    folder, index, where = sharded(flux)
    assert run("from-torch", "--flux", flux, out=flux.parent / "good" / "MODEL")[0] == 0
    edit(folder / "0.safetensors", lambda t: t.update({max(where): torch.zeros(1)}))
    assert f"{max(where)} is in another shard too" in run("from-torch", "--flux", flux)[1]
    edit(folder / "0.safetensors", lambda t: t.pop(max(where)))
    index.write_text(json.dumps({"weight_map": where | {"more": "0.safetensors"}}))
    assert "differs from its shards by 1 keys: more;" in run("from-torch", "--flux", flux)[1]
    (folder / "1.safetensors").unlink()
    assert "1.safetensors: is missing" in run("from-torch", "--flux", flux)[1]
    index.write_text(json.dumps({"weight_map": {"a": "../vae/x.safetensors"}}))
    assert "is missing" in run("from-torch", "--flux", flux)[1]
    index.write_text("[]")
    assert "not a JSON object" in run("from-torch", "--flux", flux)[1]


def test_a_truncated_file(flux, run):
    path = flux / TRANSFORMER
    os.truncate(path, path.stat().st_size - 1)
    status, error = run("from-torch", "--flux", flux)
    assert status == 3
    assert f"{path}: is truncated" in error


def test_a_copy_of_the_embedding_must_be_one(flux, run):
    path = flux / "text_encoder_2/model.safetensors"
    copy = "encoder.embed_tokens.weight"
    edit(path, lambda t: t.update({copy: t["shared.weight"].clone()}))
    assert run("from-torch", "--flux", flux)[0] == 0
    shutil.rmtree(flux.parent / "out")
    edit(path, lambda t: t[copy].mul_(2))
    assert "embed_tokens.weight differs from shared.weight" in run("from-torch", "--flux", flux)[1]


def test_bad_usage(tmp_path, run):
    assert run("from-torch")[0] == 2
    status, error = run("from-torch", "--adapter", TINY / "instantcharacter_ip-adapter.bin")
    assert (status, "give --flux too" in error) == (2, True)
    status, error = run("from-torch", "--flux", tmp_path / "nowhere")
    assert (status, "no such file or folder" in error) == (2, True)
    status, error = run("from-torch", "--flux", tmp_path)
    assert (status, "has no config.json of a transformer" in error) == (3, True)
    file = TINY / "siglip" / "model.safetensors"
    status, error = run("from-torch", "--t5", file)
    assert (status, "holds no t5, but siglip (transformers); give it to --siglip" in error) == (
        3,
        True,
    )
    with pytest.raises(SystemExit) as stop:
        run("from-torch", "--dtype", "int8")
    assert stop.value.code == 2


def test_the_hub_offline_and_gated(run, monkeypatch):
    status, error = run("from-torch", "--siglip", "google/siglip-so400m-patch14-384")
    assert (status, "cannot be reached" in error) == (2, True)

    def refuse(kind):
        def download(*_, **__):
            raise kind("no\nno", response=MagicMock())

        monkeypatch.setattr("huggingface_hub.snapshot_download", download)
        return run("from-torch", "--flux", "black-forest-labs/FLUX.1-dev")

    status, error = refuse(errors.GatedRepoError)
    assert (status, "accept its licence" in error, "hf auth login" in error) == (2, True, True)
    assert "no such repository" in refuse(errors.RepositoryNotFoundError)[1]
    assert "the Hugging Face Hub answered: no" in refuse(errors.HfHubHTTPError)[1]


# The adapter's pickle.


class Evil:
    """Its pickle makes a file when it is loaded by a reader that is not careful."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


def zip_of(path, entries, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(f"x/{name}", content)
    return path


@pytest.mark.parametrize(
    "call",
    [
        (os.system, ("touch {}",)),
        (eval, ("open('{}', 'w')",)),
        (getattr, (os, "system")),
        (Path, ("{}",)),
        (torch.nn.Linear, (2, 3)),
    ],
)
def test_a_pickle_with_code_is_refused_and_nothing_runs(tmp_path, run, call):
    mark = tmp_path / "ran"
    function, arguments = call
    filled = tuple(a.format(mark) if isinstance(a, str) else a for a in arguments)
    if function is getattr:
        content = b"\x80\x02cbuiltins\ngetattr\ncos\nsystem\n\x86R."
    else:
        content = pickle.dumps({"ip_adapter": Evil(function, filled)}, protocol=2)
    path = zip_of(tmp_path / "adapter.bin", {"data.pkl": content, "byteorder": b"little"})
    status, error = run("from-torch", "--flux", TINY / "flux", "--adapter", path)
    assert status == 3
    assert f"{path}: refused: its pickle asks for" in error
    assert "nothing in it was run" in error
    assert "weights_only" not in error
    assert not mark.exists()


def test_pickles_of_other_forms(tmp_path):
    tensors = {"ip_adapter": {"a": torch.zeros(4000)}}
    torch.save(tensors, tmp_path / "good.bin")
    good = (tmp_path / "good.bin").read_bytes()
    with zipfile.ZipFile(tmp_path / "good.bin") as archive:
        entries = {i.filename.split("/", 1)[1]: archive.read(i) for i in archive.infolist()}
    torch.save(tensors, tmp_path / "legacy.bin", _use_new_zipfile_serialization=False)
    zip_of(tmp_path / "compressed.bin", entries, zipfile.ZIP_DEFLATED)
    zip_of(tmp_path / "big.bin", entries | {"byteorder": b"big"})
    zip_of(tmp_path / "none.bin", {"a": b"b"})
    zip_of(tmp_path / "short.bin", entries | {"data/0": b"123"})
    zip_of(tmp_path / "lost.bin", {k: v for k, v in entries.items() if k != "data/0"})
    zip_of(tmp_path / "garbage.bin", entries | {"data.pkl": b"\x80\x02garbage"})
    zip_of(tmp_path / "number.bin", entries | {"data.pkl": pickle.dumps({"epoch": 3})})
    loop = b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s."
    zip_of(tmp_path / "loop.bin", entries | {"data.pkl": loop})
    at = good.index(bytes(4000))
    (tmp_path / "flipped.bin").write_bytes(good[:at] + b"\x01" + good[at + 1 :])
    (tmp_path / "cut.bin").write_bytes(good[:-100])
    (tmp_path / "empty.bin").write_bytes(b"")
    (tmp_path / "page.bin").write_bytes(b"\n<html>")
    (tmp_path / "safe.bin").write_bytes(b"\x00" * 64)
    for name, message in {
        "legacy": "is no zip archive",
        "compressed": "is compressed, which torch.save never does",
        "big": "big-endian",
        "none": "none that torch.save made",
        "short": "another size than its tensors",
        "lost": r"damaged \(KeyError\)",
        "garbage": "damaged",
        "number": "holds no tensors, only epoch",
        "loop": "the group a occurs twice",
        "flipped": "storage 0 differs from its checksum",
        "cut": "truncated or damaged",
        "empty": "is empty",
        "page": "is a web page",
        "safe": "is no zip archive",
    }.items():
        path = tmp_path / f"{name}.bin"
        with pytest.raises(WeightsError, match=message) as error:
            [t.array() for t in read_torch(path).values()]
        assert str(path) in str(error.value)


def test_a_pickle_cannot_reach_beyond_its_storage(tmp_path):
    torch.save({"a": torch.zeros(8)}, tmp_path / "x.bin")
    with zipfile.ZipFile(tmp_path / "x.bin") as archive:
        entries = {i.filename.split("/", 1)[1]: archive.read(i) for i in archive.infolist()}
    shape = b"K\x08\x85"
    assert entries["data.pkl"].count(shape) == 1
    entries["data.pkl"] = entries["data.pkl"].replace(shape, b"K\x09\x85")
    with pytest.raises(WeightsError, match="damaged"):
        read_torch(zip_of(tmp_path / "x.bin", entries))


def test_another_adapter(tmp_path, run):
    torch.save({"unet": {"a": torch.zeros(1)}}, tmp_path / "x.bin")
    command = ("from-torch", "--flux", TINY / "flux", "--adapter", tmp_path / "x.bin")
    assert "is nothing that ic_jax knows, by its 1 tensors (unet.a)" in run(*command)[1]
    shutil.copy(TINY / "instantcharacter_ip-adapter.bin", tmp_path / "x.bin")
    status, error = run(*command)  # the published sizes are tried
    assert (status, "missing: image_proj.cross_layer_blocks.2." in error) == (3, True)
    (tmp_path / "x.json").write_text('{"inner_dim": 48}')
    assert "x.json: AdapterConfig: " in run(*command)[1]


# Interruptions, full disks, what is in the way.


def start(out, trap):
    """The conversion in a process of its own, with a trap set in it."""
    script = (
        "import os, signal, sys\n"
        "from convert.commands import main\n"
        "from ic_jax import files\n"
        "from ic_jax.weights import model_folder, safetensors_io\n"
        f"{trap}\n"
        f"sys.exit(main(['from-torch', '--flux', '{TINY / 'flux'}', '--out', '{out}']))"
    )
    return subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)


KILL = "lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)"
MOMENTS = {
    "the first file": f"model_folder.ModelWriter.add_config = {KILL}",
    "some tensors written": f"model_folder.ModelWriter.add_file = {KILL}",
    "before the manifest": f"model_folder.vars = {KILL}",
    "before the rename": f"files._replace = {KILL}",
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_conversion_leaves_nothing_that_is_taken_for_a_model(tmp_path, moment):
    out = tmp_path / "MODEL"
    trap = MOMENTS[moment]
    if moment == "some tensors written":
        trap = (
            "write = safetensors_io.write_tensors\n"
            "def trap(*a):\n"
            "    result = write(*a)\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
            "safetensors_io.write_tensors = trap"
        )
    assert start(out, trap).returncode == -signal.SIGKILL
    assert not out.exists()
    assert [p.name for p in tmp_path.iterdir()] == ["MODEL.partial"]
    if moment != "before the rename":
        with pytest.raises(WeightsError, match="not an ic_jax model"):
            ModelFolder.open(tmp_path / "MODEL.partial")
    assert main(["from-torch", "--flux", str(TINY / "flux"), "--out", str(out)]) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["MODEL"]
    ModelFolder.open(out).verify()


def test_ctrl_c_and_sigterm_remove_what_was_written(tmp_path, tmp_path_factory):
    reached = tmp_path_factory.mktemp("reached") / "tensors"
    script = (  # as `python -m convert`, but it stays at its first tensors until the signal
        "import pathlib, runpy, sys, time\n"
        "from ic_jax.weights import safetensors_io\n"
        "def wait(*a):\n"
        f"    pathlib.Path('{reached}').touch()\n"
        "    time.sleep(60)\n"
        "safetensors_io.write_tensors = wait\n"
        f"sys.argv[1:] = ['from-torch', '--flux', '{TINY / 'flux'}', '--out', "
        f"'{tmp_path / 'MODEL'}']\n"
        "runpy.run_module('convert', run_name='__main__')"
    )
    written = tmp_path / "MODEL.partial" / "transformer" / "config.json"
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        process = subprocess.Popen(
            [sys.executable, "-c", script], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        while process.poll() is None and not reached.exists():
            time.sleep(0.005)
        assert written.exists()
        reached.unlink()
        process.send_signal(number)
        _, err = process.communicate()
        assert process.returncode == status
        assert "Traceback" not in err
        assert not [*tmp_path.iterdir()]


def test_a_full_disk(tmp_path, run, monkeypatch):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    process = start(tmp_path / "MODEL", limit)
    assert process.returncode == 74
    assert process.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in process.stderr
    assert not [*tmp_path.iterdir()]

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 8, 1000))
    status, error = run("from-torch", "--flux", TINY / "flux")
    assert (status, "MB needed, 0.0 MB free; make room" in error) == (74, True)

    def full(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.undo()
    monkeypatch.setattr(ours, "sync", full)
    assert run("from-torch", "--flux", TINY / "flux")[0] == 74


def test_what_is_in_the_way_stays(tmp_path, capsys):
    out = tmp_path / "MODEL"
    command = ["from-torch", "--flux", str(TINY / "flux"), "--out", str(out)]
    out.write_text("a file")
    assert main(command) == 2
    assert out.read_text() == "a file"
    out.unlink()
    (out / "transformer").mkdir(parents=True)
    assert main([*command, "--overwrite"]) == 2  # perhaps published weights
    (out / "transformer").rmdir()
    assert main(command) == 0  # an empty folder is no loss
    (out / "transformer" / "model.safetensors").write_bytes(b"mine")
    assert main(command) == 2
    assert "give --overwrite" in capsys.readouterr().err
    assert (out / "transformer" / "model.safetensors").read_bytes() == b"mine"
    assert main([*command, "--overwrite"]) == 0
    ModelFolder.open(out).verify()
    (out / "thesis.txt").write_text("mine")
    assert main([*command, "--overwrite"]) == 2
    assert main(["to-torch", str(out), "--out", str(out), "--overwrite"]) == 2
    assert (out / "thesis.txt").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["MODEL"]


def test_a_failed_overwrite_keeps_the_old_model(tmp_path):
    out = tmp_path / "MODEL"
    with create(out) as writer:
        writer.add_config("scheduler", {})

    def fail():
        with create(out, overwrite=True) as writer:
            writer.add_config("scheduler", {"shift": 2.0})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert ModelFolder.open(out).json("scheduler") == {}


def test_two_conversions_to_one_place(tmp_path):
    with create(tmp_path / "MODEL"), pytest.raises(FileExistsError, match="another process"):
        create(tmp_path / "MODEL").__enter__()
    ModelFolder.open(tmp_path / "MODEL")


# Damaged MODEL folders.


@pytest.fixture
def model(tmp_path):
    main(["from-torch", "--flux", str(TINY / "flux"), "--out", str(tmp_path / "MODEL")])
    return tmp_path / "MODEL"


def test_a_damaged_model_folder(model, run):
    def inspect(*more):
        status, error = run("inspect", model, *more, out=None)
        assert status == 3
        return error

    file = model / "vae" / "model.safetensors"
    intact = file.read_bytes()
    file.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    assert run("inspect", model, out=None)[0] == 0
    assert "1 files differ from their checksum: vae/model.safetensors" in inspect("--verify")
    with pytest.raises(WeightsError, match="checksum"):
        loading.load_model(model)
    with pytest.raises(WeightsError, match="checksum"):
        loading.load_component(model, "vae")
    assert run("to-torch", model, out=model.parent / "back" / "torch")[0] == 3
    assert loading.load_model(model, verify=False).vae is not None
    file.write_bytes(intact[:-1])
    assert f"{len(intact) - 1} bytes, expected {len(intact)}" in inspect()
    file.unlink()
    assert "is missing" in inspect()
    edit_json(model / "manifest.json", format=9)
    assert "format 9, this version reads 1" in inspect()
    edit_json(model / "manifest.json", format=1, components={"vae": {"../x": {}}})
    assert "is damaged" in inspect()
    entry = {"size": 1, "sha256": ""}
    edit_json(model / "manifest.json", components={"vae": {"../x": entry}})
    assert "not a plain file name" in inspect()
    edit_json(model / "manifest.json", components={"unet": {}})
    assert "unknown component unet" in inspect()
    (model / "manifest.json").write_text("{")
    assert "is damaged" in inspect()
    (model / "manifest.json").unlink()
    assert "is not an ic_jax model" in inspect()
    assert run("inspect", model / "nowhere", out=None)[0] == 2


def test_a_model_that_is_not_what_its_config_says(model):
    with pytest.raises(WeightsError, match="has no adapter, only transformer"):
        loading.load_component(model, "adapter")
    config = json.loads((model / "clip" / "config.json").read_text())
    config["num_hidden_layers"] = 2
    text = json.dumps(config).ljust((model / "clip" / "config.json").stat().st_size)
    (model / "clip" / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=r"16 misshapen: .* \[3, 24\], expected \[2, 24\]"):
        loading.load_component(model, "clip", verify=False)
