"""Missing memory of a device or a machine, said before anything is read."""

import json
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ic_jax import InstantCharacterPipeline, auto_mesh, memory
from ic_jax.host_memory import VERSIONS, free_of_container
from ic_jax.memory import NotEnoughMemoryError, Room
from ic_jax.sharding import make_mesh, parse
from ic_jax.weights.model_folder import SMALL_MODEL, ModelFolder
from infer.commands import main as infer
from tests import toy
from train.activations import block_input_bytes
from train.models import load_models
from train.recipe import recipe_of

GB = 1e9
PLANS = json.loads((Path(__file__).parent.parent / "benchmarks" / "plans.json").read_text())


@pytest.fixture(scope="module")
def published():
    """Shapes of the published model, bfloat16."""
    return auto_mesh.published(jnp.bfloat16)


@pytest.fixture
def nothing_is_read(monkeypatch):
    def read(*_, **__):
        raise AssertionError("read")

    for name in ("verify", "read_parameters", "tensors"):
        monkeypatch.setattr(ModelFolder, name, read)


def gpu(limit, in_use=0.0, kind="NVIDIA H100 80GB HBM3"):
    stats = {"bytes_limit": limit, "bytes_in_use": in_use}
    return SimpleNamespace(platform="gpu", device_kind=kind, memory_stats=lambda: stats)


def cast(modules, dtype):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), modules)


def message(monkeypatch, modules, room, dtype="bfloat16", mesh=None, **options):
    """The error for the published model in a room, without its first words."""
    monkeypatch.setattr(Room, "of", lambda devices: room)
    monkeypatch.setattr(memory, "shapes_of", lambda folder, dtype: cast(modules, dtype))
    with pytest.raises(
        NotEnoughMemoryError, match=rf"^models/ic: the model in {dtype} needs "
    ) as e:
        memory.check_inference(SimpleNamespace(path="models/ic"), dtype, mesh, **options)
    assert "\n" not in str(e.value)
    return str(e.value).partition("needs ")[2]


def test_weights_at_a_time(published):
    """Count T5 or both image encoders of offloaded encoders, whichever is larger."""

    def size(modules, mesh=None):
        return memory.weight_bytes(modules, mesh, offload_encoders=False)

    sizes = {name: size({name: module}) for name, module in published.items()}
    assert size(published) == sum(sizes.values())
    assert sum(sizes.values()) / GB == pytest.approx(42.43, abs=0.01)
    less = memory.weight_bytes(published, None, offload_encoders=True)
    assert less == sum(sizes.values()) - sizes["siglip"] - sizes["dinov2"]
    spread = make_mesh(parse("tensor=4,context=2"))
    assert 42.4 / 8 < size(published, spread) / GB < 12


@pytest.mark.parametrize(
    ("room", "dtype", "expected"),
    [
        (
            Room("this machine", 64 * GB),
            "float32",
            "84.9 GB of this machine, where 64.0 GB are free; what fits: bfloat16 (42.4 GB)",
        ),
        (
            Room("this machine", 40 * GB),
            "float32",
            "84.9 GB of this machine, where 40.0 GB are free; "
            "what fits: bfloat16 and offloaded encoders (39.3 GB)",
        ),
        (
            Room("this machine", 24 * GB),
            "float32",
            "84.9 GB of this machine, where 24.0 GB are free; take one with more memory",
        ),
        (
            Room("each v5e", 16 * GB, is_machine=False),
            "bfloat16",
            "42.4 GB of each v5e, where 16.0 GB are free; what fits: a mesh of tensor=4 (10.8 GB)",
        ),
        (
            Room.of([gpu(36 * GB, kind="NVIDIA A100")]),
            "bfloat16",
            "42.4 GB of each NVIDIA A100, where 36.0 GB are free; what fits: a mesh of tensor=2 "
            "(21.3 GB), XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 (JAX takes 0.75 of a GPU)",
        ),
    ],
)
def test_the_message_says_what_would_fit(monkeypatch, published, room, dtype, expected):
    assert message(monkeypatch, published, room, dtype) == expected


def test_what_fits_is_not_refused(monkeypatch, published):
    monkeypatch.setattr(memory, "shapes_of", lambda folder, dtype: cast(published, dtype))
    monkeypatch.setattr(memory, "free_host_memory", lambda: 8 * GB)
    folder = SimpleNamespace(path="models/ic")
    for room, options in (
        (Room("each GPU", 43 * GB, is_machine=False), {}),
        (Room("each GPU", 40 * GB, is_machine=False), {"offload_encoders": True}),
        (None, {}),
    ):
        monkeypatch.setattr(Room, "of", lambda devices, room=room: room)
        memory.check_inference(folder, "bfloat16", None, **options)
    monkeypatch.setattr(Room, "of", lambda devices: Room("a GPU", 43 * GB, is_machine=False))
    monkeypatch.setattr(memory, "free_host_memory", lambda: 1 * GB)
    largest = r"its largest tensor needs 3.6 GB of this machine, where 1.0 GB are free"
    with pytest.raises(NotEnoughMemoryError, match=largest):
        memory.check_inference(folder, "bfloat16", None)


def test_free_memory_of_devices():
    room = Room.of([gpu(60 * GB), gpu(60 * GB, in_use=20 * GB)])
    assert (room.name, room.free) == ("each NVIDIA H100 80GB HBM3", 40 * GB)
    assert room.withheld == pytest.approx(19 * GB)
    unknown = SimpleNamespace(platform="tpu", device_kind="TPU v9", memory_stats=lambda: None)
    assert Room.of([unknown]) is None
    cpus = Room.of(jax.devices())
    assert (cpus.name, cpus.sharing) == ("this machine", 8)
    assert cpus.holds(cpus.free / 8)
    assert not cpus.holds(cpus.free / 7)


def test_a_containers_limit(tmp_path):
    for name, text in {
        "memory.max": "5000\n",
        "memory.current": "3000\n",
        "memory.stat": "anon 1000\nactive_file 400\ninactive_file 600\n",
    }.items():
        (tmp_path / name).write_text(text)
    assert free_of_container(tmp_path) == 3000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_of_container(tmp_path) == np.inf
    assert free_of_container(tmp_path / "none") == np.inf


@pytest.mark.parametrize("version", [1, 2])
def test_a_limit_of_a_group_above_this_process_counts(tmp_path, version):
    """Take the least of what the groups of a job leave, whose limit is not the root's."""
    limit, usage, cached = VERSIONS[2 - version]
    root = tmp_path / "memory" if version == 1 else tmp_path
    for group, most in (("job", 9000), ("job/step", 7000), ("job/step/task", 8000)):
        (root / group).mkdir(parents=True)
        (root / group / limit).write_text(f"{most}\n")
        (root / group / usage).write_text("3000\n")
        stat = "".join(f"{name} 500\n" for name in cached)
        (root / group / "memory.stat").write_text(stat)
    membership = tmp_path / "membership"
    controllers = "5:memory" if version == 1 else "0:"
    membership.write_text(f"3:cpu:/other\n{controllers}:/job/step/task\n")
    assert free_of_container(tmp_path, membership) == 7000 - 2000


def test_drawing_says_so_before_anything_is_read(monkeypatch, nothing_is_read, capsys, tmp_path):
    monkeypatch.setattr(memory, "free_host_memory", lambda: 5e6)
    with pytest.raises(NotEnoughMemoryError, match=r"GB are free; (what fits|take one)"):
        InstantCharacterPipeline.from_pretrained(SMALL_MODEL, "float32")
    assert infer(["--out", str(tmp_path / "out.png")]) == 2
    error = capsys.readouterr().err
    assert re.match(
        r"error: .*small_model: the model in float32 and 128 x 128 pixels needs 0\.\d GB of",
        error,
    )


def test_training_says_so_before_anything_is_read(monkeypatch, tmp_path, published):
    folder = ModelFolder.open(toy.write_model(tmp_path / "model"))
    recipe = recipe_of(
        {"model": str(folder.path), "data": "data", "out": "out", "dtype": "float32"}
        | {"mesh": "data=2", "stage1": {"steps": 1, "batch": 2, "resolution": 32}}
    )
    monkeypatch.setattr(memory, "free_host_memory", lambda: 1e6)
    for name in ("verify", "read_parameters", "tensors"):
        monkeypatch.setattr(ModelFolder, name, None)
    with pytest.raises(NotEnoughMemoryError, match=r"model: training in float32 needs 0\.0 GB"):
        load_models(recipe, folder)
    # The published base and adapter: 5 float32 copies of 2.8 billion parameters are 55.9 GB.
    monkeypatch.setattr(memory, "shapes_of", lambda folder, dtype: cast(published, dtype))
    monkeypatch.setattr(Room, "of", lambda devices: Room("each GPU", 79 * GB, is_machine=False))
    monkeypatch.setattr(memory, "free_host_memory", lambda: 8 * GB)
    base, mesh = published.keys() - {"adapter"}, make_mesh(parse("data=2"))
    expected = "92.7 GB of each GPU, where 79.0 GB are free; what fits: "
    fewer = 'optimizer = "x" (64.8 GB), '
    more = "2 devices with fsdp=2 (46.5 GB)"
    for leaner, fitting in (({}, more), ({'optimizer = "x"': 2.5}, fewer + more)):
        with pytest.raises(NotEnoughMemoryError) as raised:
            memory.check_training(
                folder,
                "bfloat16",
                mesh,
                base,
                published["adapter"],
                replicate=True,
                leaner=leaner,
            )
        assert str(raised.value).partition("needs ")[2] == expected + fitting


def test_training_counts_what_a_step_keeps(monkeypatch, published):
    """Keep the inputs of 57 blocks of every sample, 1.6 GB at 1024 pixels, before the gradient."""
    stages = {"stage1": {"steps": 1, "batch": 32, "resolution": 1024}}
    recipe = recipe_of({"model": "m", "data": "d", "out": "o", **stages})
    flux, vae = (published[name].config for name in ("transformer", "vae"))
    each = block_input_bytes(recipe, recipe.stages["stage1"], flux, vae)
    assert each == 57 * (4096 + 512) * 3072 * 2
    monkeypatch.setattr(memory, "shapes_of", lambda folder, dtype: cast(published, dtype))
    monkeypatch.setattr(Room, "of", lambda devices: Room("each GPU", 120 * GB, is_machine=False))
    monkeypatch.setattr(memory, "free_host_memory", lambda: 8 * GB)
    folder, mesh = SimpleNamespace(path="models/ic"), make_mesh(parse("data=1"))
    models = (published.keys() - {"adapter"}, published["adapter"])
    check = partial(
        memory.check_training, folder, "bfloat16", mesh, *models, replicate=True, parts=[2, 4]
    )
    check(activations=16 * each)
    with pytest.raises(NotEnoughMemoryError) as raised:
        check(activations=32 * each)
    assert str(raised.value).partition("needs ")[2] == (
        "133.2 GB of each GPU, where 120.0 GB are free; what fits: "
        "accumulate 2 times as large (107.4 GB), 2 devices with fsdp=2 (66.7 GB)"
    )


@pytest.mark.parametrize(
    "command", [c for c in PLANS if c.startswith("train") and "remat" not in c]
)
def test_no_compiled_step_takes_less_than_is_counted(command):
    """The inputs of all blocks are 6 to 41% of the temporaries, the gradient included.

    The share is largest where the gradient is sharded over sixteen devices and a picture is large.
    """
    published = auto_mesh.published_configs()
    for plan in PLANS[command]["plans"]:
        settings, sizes = plan["settings"], plan["bytes per device"]
        stage = {"steps": 1, "batch": settings["batch"], "resolution": settings["resolution"]}
        recipe = recipe_of({"model": "m", "data": "d", "out": "o", "stage1": stage})
        each = block_input_bytes(
            recipe, recipe.stages["stage1"], published["transformer"], published["vae"]
        )
        rows = settings["batch"] // settings["accumulate"] / plan["devices"]
        share = rows * each / sizes["temporaries, results and code"]
        assert 0.05 < share < 0.45
