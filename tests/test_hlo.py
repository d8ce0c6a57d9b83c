"""Counting the work in the text of compiled programs, against what is known by hand."""

import pytest

from ic_jax.planning.hlo_cost import work_of

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


def test_the_text_of_a_tpu_program():
    work = work_of(TPU)
    assert work.loops_of_unknown_length == 0
    assert work.flops == 28 * 2 * 8 * 128 * 128
    (gather,) = work.collectives
    assert (gather.devices, gather.count, gather.bytes) == (8, 28, 2 * 128 * 128)


@pytest.mark.parametrize(
    ("left", "kernel", "out", "attributes", "products"),
    [
        # products of heads: within, and over padding, where of 24 places one lies on a value
        ("24,8,4", "24,4,8", "1,8,8", "window={size=24}, dim_labels=0bf_0io->0bf", 24 * 8 * 4 * 8),
        (
            *("1,8,4", "24,4,8", "24,8,8"),
            "window={size=24 pad=23_23 rhs_reversal=1}, dim_labels=0bf_0io->0bf",
            24 * 8 * 4 * 8,
        ),
        # 3 x 3 with padding: the corners see 4 places, the edges 6
        (
            *("1,4,4,2", "3,3,2,5", "1,4,4,5"),
            "window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f",
            (4 * 4 + 8 * 6 + 4 * 9) * 2 * 5,
        ),
        # its gradient by the input of a stride of 2: three of four places lie between values
        (
            *("1,2,2,5", "2,2,5,2", "1,4,4,2"),
            "window={size=2x2 pad=1_1x1_1 lhs_dilate=2x2}, dim_labels=b01f_01io->b01f",
            4 * 4 * 5 * 2,
        ),
    ],
)
def test_a_convolution_counts_no_padding(left, kernel, out, attributes, products):
    text = f"""
ENTRY %main (x: f32[{left}], w: f32[{kernel}]) -> f32[{out}] {{
  %x = f32[{left}]{{0}} parameter(0)
  %w = f32[{kernel}]{{0}} parameter(1)
  ROOT %y = f32[{out}]{{0}} convolution(%x, %w), {attributes}
}}
"""
    assert work_of(text).flops == pytest.approx(2 * products)


# As XLA prints them for GPUs: a loop over stacked weights, which an asynchronous fusion slices and
# another fusion joins, products by cublasLt and attention by cuDNN.
GPU = """
%sliced (stack: bf16[10,64,64], i: s32[]) -> bf16[1,64,64] {
  %stack = bf16[10,64,64]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %slice = bf16[1,64,64]{2,1,0} dynamic-slice(%stack, %i, %zero, %zero), \
dynamic_slice_sizes={1,64,64}
}

%joined (a: bf16[10,64,64], b: bf16[10,64,64], i.1: s32[]) -> bf16[1,64,128] {
  %a = bf16[10,64,64]{2,1,0} parameter(0)
  %b = bf16[10,64,64]{2,1,0} parameter(1)
  %i.1 = s32[] parameter(2)
  %zero.1 = s32[] constant(0)
  %slice.a = bf16[1,64,64]{2,1,0} dynamic-slice(%a, %i.1, %zero.1, %zero.1), \
dynamic_slice_sizes={1,64,64}
  %slice.b = bf16[1,64,64]{2,1,0} dynamic-slice(%b, %i.1, %zero.1, %zero.1), \
dynamic_slice_sizes={1,64,64}
  ROOT %both = bf16[1,64,128]{2,1,0} concatenate(%slice.a, %slice.b), dimensions={2}
}

%scaled (x.1: bf16[8,64]) -> bf16[8,64] {
  %x.1 = bf16[8,64]{1,0} parameter(0)
  ROOT %twice = bf16[8,64]{1,0} add(%x.1, %x.1)
}

%cond (p: (s32[], bf16[8,64], bf16[10,64,64], bf16[10,64,64])) -> pred[] {
  %p = (s32[], bf16[8,64]{1,0}, bf16[10,64,64]{2,1,0}, bf16[10,64,64]{2,1,0}) parameter(0)
  %n = s32[] constant(10)
  %count = s32[] get-tuple-element(%p), index=0
  ROOT %less = pred[] compare(%count, %n), direction=LT
}

%body (p.1: (s32[], bf16[8,64], bf16[10,64,64], bf16[10,64,64])) -> (s32[], bf16[8,64], \
bf16[10,64,64], bf16[10,64,64]) {
  %p.1 = (s32[], bf16[8,64]{1,0}, bf16[10,64,64]{2,1,0}, bf16[10,64,64]{2,1,0}) parameter(0)
  %count.1 = s32[] get-tuple-element(%p.1), index=0
  %x = bf16[8,64]{1,0} get-tuple-element(%p.1), index=1
  %w = bf16[10,64,64]{2,1,0} get-tuple-element(%p.1), index=2
  %v = bf16[10,64,64]{2,1,0} get-tuple-element(%p.1), index=3
  %start = ((bf16[10,64,64]{2,1,0}, s32[]), bf16[1,64,64]{2,1,0}, u32[]) \
fusion-start(%w, %count.1), kind=kLoop, calls=%sliced
  %twice.1 = bf16[8,64]{1,0} fusion(%x), kind=kLoop, calls=%scaled
  %done = bf16[1,64,64]{2,1,0} fusion-done(%start)
  %square = bf16[64,64]{1,0} bitcast(%done)
  %y = (bf16[8,64]{1,0}, s8[0]{0}) custom-call(%twice.1, %square), \
custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{\
"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  %z = bf16[8,64]{1,0} get-tuple-element(%y), index=0
  %wide = bf16[1,64,128]{2,1,0} fusion(%w, %v, %count.1), kind=kLoop, calls=%joined
  %q = bf16[1,8,4,16]{3,2,1,0} bitcast(%z)
  %attended = (bf16[1,8,4,16]{3,2,1,0}, u8[0]{0}) custom-call(%q, %q, %q), \
custom_call_target="__cudnn$fmhaSoftmax"
  %o = bf16[1,8,4,16]{3,2,1,0} get-tuple-element(%attended), index=0
  %out = bf16[8,64]{1,0} bitcast(%o)
  ROOT %t = (s32[], bf16[8,64]{1,0}, bf16[10,64,64]{2,1,0}, bf16[10,64,64]{2,1,0}) \
tuple(%count.1, %out, %w, %v)
}

ENTRY %main (x.2: bf16[8,64], w.1: bf16[10,64,64], v.1: bf16[10,64,64]) -> bf16[8,64] {
  %x.2 = bf16[8,64]{1,0} parameter(0)
  %w.1 = bf16[10,64,64]{2,1,0} parameter(1)
  %v.1 = bf16[10,64,64]{2,1,0} parameter(2)
  %first = s32[] constant(0)
  %state = (s32[], bf16[8,64]{1,0}, bf16[10,64,64]{2,1,0}, bf16[10,64,64]{2,1,0}) \
tuple(%first, %x.2, %w.1, %v.1)
  %loop = (s32[], bf16[8,64]{1,0}, bf16[10,64,64]{2,1,0}, bf16[10,64,64]{2,1,0}) \
while(%state), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"10"}}
  ROOT %end = bf16[8,64]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_the_text_of_a_gpu_program():
    work = work_of(GPU)
    product, attention = 2 * 8 * 64 * 64, 4 * 8 * 8 * 64
    assert work.flops == 10 * (product + attention)
    assert work.attention_flops == 10 * attention
    assert work.kernels == {"__cublas$lt$matmul": 10, "__cudnn$fmhaSoftmax": 10}
    weight, rows = 2 * 64 * 64, 2 * 8 * 64
    copies = 2 * weight + 2 * 2 * weight
    # Besides the copies: the scaling, the product, and attention, which reads three times the same.
    scalars = 4 + 4 + 4 + 4 + 1  # the counter in both slices, and compared with 10
    moved = copies + 2 * rows + (2 * rows + weight) + 4 * rows + scalars
    assert work.bytes == 10 * moved
    assert work.weight_copies == 10 * copies


def test_only_copies_of_weights_are_counted():
    assert work_of(GPU, is_weight=lambda _: False).weight_copies == 0
    weight = 2 * 64 * 64
    assert work_of(GPU, is_weight=lambda number: number == 1).weight_copies == 10 * 2 * weight


@pytest.mark.parametrize(
    ("groups", "devices", "spread"),
    [
        ("replica_groups={{0,1},{2,3}}", 2, 1),
        ("replica_groups={{0,2},{1,3}}", 2, 2),
        ("replica_groups=[1,4]<=[4]", 4, 2),
        ("replica_groups=[2,2]<=[4]", 2, 1),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", 2, 2),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}", 2, 1),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", 2, 2),
    ],
)
def test_who_communicates(groups, devices, spread):
    text = f"""
ENTRY %main (x: f32[8]) -> f32[8] {{
  %x = f32[8]{{0}} parameter(0)
  ROOT %y = f32[8]{{0}} all-reduce(%x), channel_id=1, {groups}, to_apply=%add
}}
"""
    (collective,) = work_of(text, machines=[0, 0, 1, 1]).collectives
    assert (collective.devices, collective.machines) == (devices, spread)


def test_the_compilers_cycles():
    """Products apart from the rest; what only waits for an earlier start takes none."""
    text = """
%inside (a: bf16[8,8], b: bf16[8,8]) -> bf16[8,8] {
  %a = bf16[8,8]{1,0} parameter(0)
  %b = bf16[8,8]{1,0} parameter(1)
  ROOT %c = bf16[8,8]{1,0} convolution(%a, %b), dim_labels=bf_io->bf
}

ENTRY %main (x: bf16[8,8]) -> bf16[8,8] {
  %x = bf16[8,8]{1,0} parameter(0)
  %t = bf16[8,8]{1,0} copy(%x), backend_config={"estimated_cycles":"30"}
  %y = bf16[8,8]{1,0} fusion(%t, %x), kind=kOutput, calls=%inside, \
backend_config={"estimated_cycles":"500"}
  %s = (bf16[8,8]{1,0}, bf16[8,8]{1,0}, u32[]) copy-start(%y), \
backend_config={"estimated_cycles":"7"}
  ROOT %d = bf16[8,8]{1,0} copy-done(%s), backend_config={"estimated_cycles":"7"}
}
"""
    cycles = work_of(text).cycles
    assert (cycles.products, cycles.others) == (500, 37)
