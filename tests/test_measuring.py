"""Measuring: parts within a budget, times and rates, kinds of kernels, sizes, random weights."""

import gc
import json
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ic_jax.measuring import timing
from ic_jax.measuring.kernel_profile import KINDS, OTHERS, kind_of
from ic_jax.measuring.parts import Budget, Part, Results, measure
from ic_jax.measuring.random_weights import random_module
from ic_jax.measuring.sizes import NAMES, size_of
from ic_jax.measuring.timing import Timing, compiled, rates
from ic_jax.weights.loading import parameters


@pytest.fixture
def file(tmp_path):
    return tmp_path / "parts.json"


def written(file):
    return json.loads(file.read_text())


def fail():
    raise ValueError("no\nway")


def test_a_part_that_fails_or_has_no_time_is_passed_over(file, capsys):
    results, seen = Results({"date": "today"}, file), []

    def look():
        seen.append(written(file)["parts"])
        return {"x": 1, "more": {"y": 2, "z": [3]}, "list": [4]}

    parts = [Part("bad", 0, fail), Part("long", 60, look), Part("good", 1, look)]
    measure(parts, results, Budget(30))
    bad, long, good = written(file)["parts"].values()
    assert bad["failed"] == "ValueError: no way"
    assert "in fail" in bad["traceback"]
    assert long["skipped"].endswith("s left, about 60 s needed")
    assert good["result"] == {"x": 1, "more": {"y": 2, "z": [3]}, "list": [4]}
    # While a part is measured, the file has those before it, whole.
    assert seen == [{"bad": bad, "long": long, "good": {"running": 1}}]
    out = capsys.readouterr().out
    assert "bad: failed, ValueError: no way" in out
    assert "  x: 1\n  more: y 2\n" in out


def test_a_part_takes_longer_without_the_parts_that_it_uses():
    weights = Part("weights", 30, fail)
    step = Part("step", 60, fail, [weights])
    assert step.seconds_after({"weights": {"result": {}}}) == 60
    assert step.seconds_after({"weights": {"failed": "out of memory"}}) == 90
    assert step.seconds_after({}) == 90


def test_ctrl_c_leaves_what_was_measured(file):
    def interrupt():
        raise KeyboardInterrupt

    parts = [Part("done", 0, lambda: {"x": 1}), Part("cut", 0, interrupt), Part("later", 0, fail)]
    with pytest.raises(KeyboardInterrupt):
        measure(parts, Results({}, file), Budget(None))
    assert written(file)["parts"].keys() == {"done", "cut"}
    assert written(file)["parts"]["cut"] == {"interrupted": True}


def test_median_and_rates():
    timing = Timing((0.3, 0.1, 0.2)).to_dict()
    assert timing == {"ms": 200, "lowest ms": 100, "highest ms": 300, "samples": 3}
    assert rates(5e12, 2.0) == {"TFLOP": 5, "TFLOP/s": 2.5, "of peak": None}


def test_a_compiled_program_does_not_keep_the_weights_that_it_was_compiled_for():
    values, x = jnp.ones(3), jnp.ones(3)
    kept = weakref.ref(values)
    weight = nnx.Param(values)
    program = compiled(lambda w, x: w[...] * x, weight, x)
    assert [program.is_weight(n) for n in range(2)] == [True, False]
    del weight, values
    gc.collect()
    assert kept() is None


def test_the_first_call_is_not_timed(monkeypatch):
    results = []
    monkeypatch.setattr(timing, "sample", lambda call, calls: float(len(results)))
    assert timing.timed(lambda: results.append(1), 3).samples == (1, 1, 1)


def test_kinds_of_kernels():
    kernels = {
        "sm90_xmma_gemm_bf16bf16_bf16f32": "products",
        "nvjet_tst_128x256_64x4_2x1_v_bz_coopA_NNT": "products",
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop": "attention",
        "splash_mha_fwd": "attention",
        "ncclDevKernel_AllReduce_Sum_bf16_RING_LL": "collectives",
        "loop_dynamic_slice_fusion_3": "copies",
        "MemcpyD2D": "copies",
        "convert_reduce_fusion": OTHERS,
        "input_reduce_fusion_2": OTHERS,
    }
    assert {name: kind_of(name) for name in kernels} == kernels
    assert set(kernels.values()) == {*KINDS, OTHERS}


@pytest.mark.parametrize("size", NAMES)
def test_sizes_are_whole_and_divide_into_tokens(size):
    size = size_of(size)
    assert size.side % size.pixels_per_token == size.training_side % size.pixels_per_token == 0
    siglip, dinov2, adapter = (size.configs[k] for k in ("siglip", "dinov2", "adapter"))
    assert adapter.inner_dim == siglip.hidden_size + dinov2.hidden_size
    assert size.configs["t5"].d_model == size.configs["transformer"].joint_attention_dim
    assert size.configs["clip"].hidden_size == size.configs["transformer"].pooled_projection_dim


def test_random_weights_keep_rows_of_unit_size():
    config = size_of("toy").configs["transformer"]
    module = random_module("transformer", config, config, jnp.bfloat16)
    values = {path: np.asarray(x[...], np.float32) for path, x in parameters(module).items()}
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(module))
    for path, x in values.items():
        name = path.rpartition(".")[2]
        if name == "bias":
            assert not x.any()
        elif name == "kernel":
            assert np.std(x) == pytest.approx(x.shape[-2] ** -0.5, rel=0.2)
        else:
            assert (x == 1).all()
    # Parameters of equal shape differ, as do blocks.
    q, k = (values[f"transformer_blocks.*.attn.to_{name}.kernel"] for name in "qk")
    assert (q != k).mean() > 0.9
    assert (q[0] != q[1]).mean() > 0.9
