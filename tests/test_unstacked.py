"""The unstacked form of FLUX and the adapter: same numbers, same published parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ic_jax.models.flux import Flux
from ic_jax.models.image_prompt import ImagePrompt
from ic_jax.models.layers import RMSNorm, normalize
from ic_jax.models.rope import (
    Rope,
    _by_pairs,
    in_stream_order,
    normalize_and_rotate,
    rope_table,
    rotate,
)
from ic_jax.models.target import compiling_for
from ic_jax.models.unstacked import drawing_form
from ic_jax.sharding import make_mesh, parse
from ic_jax.weights.loading import parameters
from tests.conftest import GOLDENS
from tests.golden import Golden
from tests.oracle import relative


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    return Golden(GOLDENS / "adapter.safetensors", tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="module")
def forms(golden):
    """FLUX and the adapter as published, with split outputs, and unstacked."""
    copies = [jax.tree.map(jnp.copy, (golden.flux, golden.adapter)) for _ in range(2)]
    return {
        "published": (golden.flux, golden.adapter),
        "split": drawing_form(*copies[0], "tpu"),
        "unstacked": drawing_form(*copies[1], "gpu"),
    }


@pytest.mark.parametrize(
    ("form", "platform"),
    [
        *(("published", platform) for platform in ("cpu", "tpu", "gpu")),
        *(("split", platform) for platform in ("cpu", "tpu", "gpu")),
        ("unstacked", "gpu"),
    ],
)
def test_velocity(golden, forms, form, platform):
    """Every form is the published model, in the order of axes of every platform."""
    flux, adapter = forms[form]
    prompt = ImagePrompt(
        adapter.ip_adapter,
        golden["out/0/subject_tokens"],
        jnp.full(2, golden.config["subject_scales"][1]),
    )
    ids = np.concatenate([golden["in/txt_ids"], golden["in/img_ids"]])
    with compiling_for(platform):
        velocity = jax.jit(lambda *x: Flux.__call__(*x))(
            flux,
            golden["in/latents"],
            golden["in/prompt_embeds"],
            golden["in/pooled"],
            jnp.full(2, golden.config["timesteps"][0] / 1000),
            jnp.full(2, golden.config["guidance"]),
            rope_table(ids, flux.config),
            prompt,
        )
    assert relative(velocity, golden["out/0/velocity/1"]) < 1e-5


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rotation_by_a_product_equals_that_of_pairs(dtype):
    """Rounded alike: the product is exact. The gradient is that of the pairs' formula."""
    rng = np.random.default_rng(0)
    x, ct = (jnp.asarray(rng.standard_normal((2, 3, 5, 8), np.float32), dtype) for _ in range(2))
    angles = rng.standard_normal((5, 4), np.float32)
    pairs = Rope(jnp.cos(angles), jnp.sin(angles))
    for platform in ("cpu", "tpu"):
        with compiling_for(platform):
            rope = in_stream_order(pairs, 2)
            y, pullback = jax.vjp(lambda x, rope=rope: rotate(x, rope), x)
            reference, expected = jax.vjp(lambda x: _by_pairs(x, pairs).astype(dtype), x)
            np.testing.assert_allclose(
                *(np.float32(z) for z in (y, reference)), rtol=1e-6, atol=1e-7
            )
            gradients = pullback(ct)[0], expected(ct)[0]
            np.testing.assert_allclose(*(np.float32(z) for z in gradients), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("lengths", [(5,), (2, 3)])
def test_rotation_before_the_scale_of_the_norm(lengths):
    """A TPU's order of operations gives the numbers and gradients of a norm and then a rotation."""
    rng = np.random.default_rng(0)

    def random(*shape):
        return jnp.asarray(rng.standard_normal(shape, np.float32))

    norms = [RMSNorm(8, eps=1e-6) for _ in lengths]
    for norm in norms:
        norm.weight.set_value(random(8))
    xs, ct = [random(2, 3, n, 8) for n in lengths], random(2, 3, 5, 8)
    angles = random(5, 4)

    def result(platform):
        with compiling_for(platform):
            rope = in_stream_order(Rope(jnp.cos(angles), jnp.sin(angles)), 2)
            y, pullback = jax.vjp(
                lambda *xs: normalize_and_rotate(list(zip(xs, norms, strict=True)), rope), *xs
            )
            return y, *pullback(ct)

    for ours, expected in zip(result("tpu"), result("cpu"), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


def test_layer_norm_in_one_pass():
    """Means of squares and squared means, as on a TPU; their difference is never below zero."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((7, 64)) + 3 * rng.standard_normal((7, 1))
    x[0] = 1000.1
    x = x.astype(np.float32)
    y = x.astype(np.float64) - x.mean(-1, keepdims=True, dtype=np.float64)
    expected = y / np.sqrt(np.square(y).mean(-1, keepdims=True) + 1e-6)
    with compiling_for("tpu"):
        ours = np.asarray(normalize(jnp.asarray(x), 1e-6))
    np.testing.assert_allclose(ours[1:], expected[1:], rtol=1e-5, atol=1e-5)
    assert np.isfinite(ours).all()


@pytest.mark.parametrize("mesh", ["data=1", "context=2"])
def test_subject_of_all_tokens(golden, mesh):
    """A TPU attends from all tokens and drops the text's; the result is that of image tokens."""
    stacks, config = golden.adapter.ip_adapter, golden.flux.config
    attention = jax.tree.map(lambda x: x[0], stacks.single_transformer_blocks.blocks)
    rng = np.random.default_rng(0)
    tokens = golden["out/0/subject_tokens"]
    shape = (2, config.num_attention_heads, 12, config.attention_head_dim)
    out, q = (jnp.asarray(rng.standard_normal(shape, np.float32)) for _ in range(2))
    prompt = ImagePrompt(stacks, tokens, jnp.array([0.5, 1.0])).block(attention)
    with jax.set_mesh(
        make_mesh(parse(mesh), jax.devices()[:2] if "2" in mesh else jax.devices()[:1])
    ):
        results = []
        for platform in ("tpu", "cpu"):
            with compiling_for(platform):
                results.append(jax.jit(lambda *x: prompt(*x, 4))(out, q))
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["split", "unstacked"])
def test_published_parameters(forms, form):
    for published, module in zip(forms["published"], forms[form], strict=True):
        expected, ours = parameters(published), parameters(module)
        assert ours.keys() == expected.keys()
        for path, variable in expected.items():
            assert ours[path].shape == variable.shape, path
            assert ours[path].axes == variable.axes, path
            assert ours[path].dtype == variable.dtype, path
            np.testing.assert_array_equal(ours[path][...], variable[...], err_msg=path)


@pytest.mark.parametrize("platform", ["tpu", "gpu"])
def test_published_parameters_are_writable(golden, platform):
    flux, _ = drawing_form(jax.tree.map(jnp.copy, golden.flux), None, platform)
    ours = parameters(flux)
    before = {path: np.asarray(x[...]) for path, x in ours.items()}
    for changed in (
        "transformer_blocks.*.attn.add_k_proj.kernel",
        "single_transformer_blocks.*.proj_out.kernel",
    ):
        ours[changed].set_value(before[changed] + 1)
        for path, values in before.items():
            np.testing.assert_array_equal(ours[path][...], values + (path == changed), err_msg=path)
        ours[changed].set_value(before[changed])
