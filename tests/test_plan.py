"""Counting the work of compiled programs, and choosing meshes, against what is known by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ic_jax import auto_mesh
from ic_jax.planning import compile_plan
from ic_jax.planning.hlo_cost import work_of
from ic_jax.sharding import ShardingError, make_mesh, parse

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
    return compile_plan.compile_report("blocks", blocks, (x, kernels), ("batch", "weights"), mesh)


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


# As libtpu prints them: loops without a count, layouts with tiles and memory spaces.
TPU = """
%cond (p: (s32[], bf16[8,128])) -> pred[] {
  %p = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %n = s32[]{:T(128)} constant(28)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %less = pred[]{:T(512)} compare(%i, %n), direction=LT
}

%body (p.1: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %p.1 = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %x = bf16[8,128]{1,0:T(8,128)(2,1)} get-tuple-element(%p.1), index=1
  %w = bf16[128,128]{1,0:T(8,128)(2,1)S(1)} all-gather(%x), channel_id=1, \
replica_groups=mesh['a'=2,'b'=8] {'b'}, dimensions={0}
  %y = bf16[8,128]{1,0:T(8,128)(2,1)} convolution(%x, %w), dim_labels=bf_io->bf
  ROOT %t = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) tuple(%i.1, %y)
}

ENTRY %main (a: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %a = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) parameter(0)
  ROOT %loop = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) while(%a), \
condition=%cond, body=%body
}
"""


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


def test_the_text_of_a_tpu_program():
    work = work_of(TPU)
    assert work.loops_of_unknown_length == 0
    assert work.flops == 28 * 2 * 8 * 128 * 128
    (gather,) = work.collectives
    assert (gather.devices, gather.count, gather.bytes) == (8, 28, 2 * 128 * 128)


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
