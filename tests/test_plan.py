"""Plans of small programs, and the choice of meshes, against what is known by hand."""

import importlib.util
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ic_jax import auto_mesh
from ic_jax.cli import one_line
from ic_jax.config import ConfigError
from ic_jax.devices import Chip
from ic_jax.planning import compile_plan
from ic_jax.planning.gpu_targets import GPU_TARGETS
from ic_jax.planning.hlo_collectives import Collective
from ic_jax.planning.hlo_cost import Work
from ic_jax.planning.report import seconds_at_least
from ic_jax.planning.topologies import topology_devices
from ic_jax.sharding import ShardingError, make_mesh, parse
from ic_jax.weights.model_folder import SMALL_MODEL
from train import commands, plan_command
from train.recipe import changed, recipe_of

ROWS, WIDTH, BLOCKS = 64, 256, 10


def blocks(x, kernels):
    def block(x, kernel):
        y = x @ jax.lax.with_sharding_constraint(kernel, P())
        return jax.lax.with_sharding_constraint(y, P("fsdp")), None

    return jax.lax.scan(block, x, kernels)[0]


@pytest.fixture(scope="module")
def report():
    mesh = make_mesh(parse("fsdp=4"))

    def shaped(*shape, spec):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))

    x = shaped(ROWS, WIDTH, spec=P("fsdp"))
    kernels = shaped(BLOCKS, WIDTH, WIDTH, spec=P(None, "fsdp"))
    labels = ("batch", "weights")
    program = compile_plan.PlannedProgram("blocks", blocks, (x, kernels), labels, mesh, minutes=1)
    return compile_plan.compile_report(program)


def test_a_loop_counts_as_often_as_it_runs(report):
    work = report.work
    assert work.flops == 2 * ROWS * WIDTH * WIDTH * BLOCKS / 4
    (gather,) = work.collectives
    assert (gather.kind, gather.bytes, gather.devices, gather.count) == (
        *("all-gather", 4 * WIDTH * WIDTH),
        *(4, BLOCKS),
    )
    assert gather.sent == BLOCKS * 3 * WIDTH * WIDTH
    # Each block's whole kernel, and rows in and out, at the least; not ten times the stack.
    least = BLOCKS * 4 * (WIDTH * WIDTH + 2 * ROWS / 4 * WIDTH)
    assert least < work.bytes < 6 * least


def test_bytes_by_label(report):
    assert report.arguments == {
        "batch": 4 * ROWS * WIDTH / 4,
        "weights": 4 * BLOCKS * WIDTH * WIDTH / 4,
    }
    values = report.to_dict()
    assert values["fits"] is None  # nothing is known of a CPU
    assert values["mesh"] == "fsdp=4"
    assert values["collectives"]["all-gather"]["count"] == BLOCKS


def test_what_a_program_needs_that_a_chip_cannot_hold():
    every = "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Used 17.50G of 15.75G hbm."
    beside = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (16.12G) exceeds available HBM (15.75G)."
    )
    unit = 2**30
    assert compile_plan._required(every, unit) == (17.5 * unit, None, 15.75 * unit)
    assert compile_plan._required(beside, unit) == (
        int(17.12 * unit),
        int(16.12 * unit),
        15.75 * unit,
    )
    assert compile_plan._required("INTERNAL: something else", unit) == (0, None, None)


def test_the_compilers_own_words_say_which_other_memory_is_too_small(monkeypatch):
    words = "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 17M of 16M vmem."

    def compile(**_):
        raise jax.errors.JaxRuntimeError(words)

    args_info = SimpleNamespace(compile_args={"kept_var_idx": {0}})
    lowered = SimpleNamespace(_lowering=args_info, compile=compile)
    monkeypatch.setattr(compile_plan.PlannedProgram, "lower", lambda *_: lowered)
    mesh = make_mesh(parse("fsdp=4"))
    x = jax.ShapeDtypeStruct((4,), jnp.float32, sharding=NamedSharding(mesh, P()))
    program = compile_plan.PlannedProgram("training step", abs, (x,), ("batch",), mesh, minutes=1)
    with pytest.raises(compile_plan.CompilationError, match=r"cpu refuses training step: .*17M of"):
        compile_plan.compile_report(program)
    line = one_line(compile_plan.CompilationError(words))
    assert line == words  # not the advice for a device that is full


@pytest.fixture(scope="module")
def full_size():
    return auto_mesh.published(jnp.bfloat16)


@pytest.mark.parametrize(
    ("count", "gigabytes", "expected"),
    [
        (1, 80, {}),  # one large device
        (8, 141, {"context": 8}),  # each holds all
        (4, 33, {"tensor": 2, "context": 2}),  # v6e:2x2
        (8, 17, {"tensor": 4, "context": 2}),  # v5e:2x4
    ],
)
def test_meshes_to_draw_on(full_size, count, gigabytes, expected):
    sizes = auto_mesh.inference_sizes(full_size, count, gigabytes * 1e9)
    assert {k: v for k, v in sizes.items() if v > 1} == expected


@pytest.mark.parametrize(
    ("count", "gigabytes", "rows", "expected"),
    [
        (1, 149, 32, {}),  # one H200
        (8, 149, 32, {"data": 8}),
        (256, 17, 256, {"data": 16, "fsdp": 16}),  # v5e:16x16
        (16, 33, 32, {"data": 2, "fsdp": 8}),  # v6e:4x4
        (64, 103, 32, {"data": 16, "fsdp": 2}),  # 32 rows take 32 of 64 devices
    ],
)
def test_meshes_to_train_on(full_size, count, gigabytes, rows, expected):
    base = dict(full_size)
    adapter = base.pop("adapter")
    sizes = auto_mesh.training_sizes(base, adapter, [rows], count, gigabytes * 1e9)
    assert {k: v for k, v in sizes.items() if v > 1} == expected


def test_what_fits_nowhere(full_size):
    with pytest.raises(ShardingError, match="no mesh of 2 devices of 8 GB holds the model"):
        auto_mesh.inference_sizes(full_size, 2, 8e9)


def test_rows_that_do_not_divide():
    with pytest.raises(ShardingError, match=r"stage2: batch / accumulate is 6, .* fsdp=4"):
        auto_mesh.check_rows({"stage1": 8, "stage2": 6}, make_mesh(parse("fsdp=4")))


def test_what_would_fit(full_size):
    with pytest.raises(ShardingError, match=r"1 devices of 17 GB .*; 4 would, as tensor=4"):
        auto_mesh.inference_sizes(full_size, 1, 17e9)
    base = dict(full_size)
    adapter = base.pop("adapter")
    with pytest.raises(ShardingError, match=r"1 devices of 79 GB .*; 2 would, as fsdp=2"):
        auto_mesh.training_sizes(base, adapter, [1], 1, 79e9)


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ((), "--set cache=FOLDER --set optimizer=adafactor"),
        (("optimizer=adafactor",), "--set cache=FOLDER"),
    ],
)
def test_settings_with_which_training_would_fit(full_size, changes, settings, monkeypatch):
    monkeypatch.setattr(auto_mesh, "memory_of", lambda _: 79e9)  # one H100
    values = dict.fromkeys(("model", "data", "out"), "none") | {"stage1": {"steps": 1, "batch": 1}}
    recipe = recipe_of(changed(values, changes))
    with pytest.raises(ShardingError, match=rf"; 2 would, as fsdp=2; or take {settings}$"):
        plan_command.step_reports(recipe, full_size, jax.devices()[:1])


def test_the_plan_is_of_the_recipes_model(full_size, monkeypatch, capsys):
    arguments = []
    monkeypatch.setattr(plan_command, "run", arguments.append)

    def recipe_and_shapes(*options):
        assert commands.main(["plan", *options]) == 0
        recipe = plan_command.recipe_to_plan(arguments.pop())
        return recipe, plan_command.model_shapes(recipe)

    recipe, shapes = recipe_and_shapes("--model", str(SMALL_MODEL), "--resolution", "96")
    assert shapes["transformer"].config.hidden_size == 192
    assert plan_command.trained_of(recipe, shapes) is shapes.pop("adapter")
    with pytest.raises(ConfigError, match="has no adapter to continue with"):
        plan_command.trained_of(recipe, shapes)
    shapes.pop("dinov2")
    with pytest.raises(ConfigError, match="small_model: training needs dinov2; convert it again"):
        plan_command.base_of(recipe, shapes)
    published = full_size["transformer"].config
    assert recipe_and_shapes()[1]["transformer"].config == published
    assert not capsys.readouterr().err
    absent = recipe_and_shapes("docs/recipes/h100.toml", "--set", "model=absent")[1]
    assert absent["transformer"].config == published
    assert "absent: is not here; the published sizes are planned" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("h100", "'' is no shape; write GPUs as h100:8, or h100:2x8 for two machines of eight"),
        ("h100:0", "'0' is no shape"),
        ("h100:2x2x2", "'2x2x2' is no shape"),
        ("v6e:2x", "'2x' is no shape"),
        ("h1:8", "'h1' is none of a100-40, a100-80, h100, h200, b200, v4, v5e, v5p, v6e"),
    ],
)
def test_topologies_that_are_none(topology, message):
    with pytest.raises(ShardingError, match=re.escape(f"topology {topology!r}: {message}")):
        topology_devices(topology)


@pytest.mark.parametrize(
    ("topology", "extra"), [("h100:8", "cuda13"), ("b200:1", "cuda13"), ("v5e:2x2", "tpu")]
)
def test_compilers_that_are_not_installed(topology, extra, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ShardingError, match=re.escape(f"pip install -e '.[{extra}]'")):
        topology_devices(topology)


@pytest.mark.parametrize("gpu", GPU_TARGETS.values(), ids=GPU_TARGETS)
def test_figures_of_gpus_agree(gpu):
    """The compiler is told the figures that plans are compared with."""
    chip = Chip.of(SimpleNamespace(device_kind=gpu.name))
    assert 0.9 * gpu.memory < chip.memory < gpu.memory
    assert chip.bandwidth == pytest.approx(gpu.bandwidth, rel=0.02)


def test_seconds_between_machines():
    """Two machines of eight, whose network is nine times slower than their links."""
    chip = Chip.of(SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3"))

    def seconds(kind, devices, machines):
        work = Work(collectives=[Collective(kind, 900_000_000, devices, machines, 1)])
        return seconds_at_least(work, chip)["communication"]

    assert seconds("all-gather", 8, 1) == pytest.approx(7 / 8 * 0.9 / 450)
    # A ring over both machines leaves each once, through all eight cards.
    assert seconds("all-gather", 16, 2) == pytest.approx(15 / 16 * 0.9 / 400)
    # Pairs of different machines have a card each.
    assert seconds("all-gather", 2, 2) == pytest.approx(1 / 2 * 0.9 / 50)
    # Half of what a device sends to each other device goes to the other machine.
    assert seconds("all-to-all", 16, 2) == pytest.approx(1 / 2 * 0.9 / 50)
