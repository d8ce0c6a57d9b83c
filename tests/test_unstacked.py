"""The unstacked form of FLUX and the adapter: same numbers, same published parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ic_jax.models.flux import Flux
from ic_jax.models.image_prompt import ImagePrompt
from ic_jax.models.rope import Rope, _by_pairs, rope_table, rotate
from ic_jax.models.target import compiling_for
from ic_jax.models.unstacked import drawing_form
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
    rope = Rope(jnp.cos(angles), jnp.sin(angles))
    for platform in ("cpu", "tpu"):
        with compiling_for(platform):
            y, pullback = jax.vjp(lambda x: rotate(x, rope), x)
            reference, expected = jax.vjp(lambda x: _by_pairs(x, rope).astype(dtype), x)
            np.testing.assert_allclose(
                *(np.float32(z) for z in (y, reference)), rtol=1e-6, atol=1e-7
            )
            gradients = pullback(ct)[0], expected(ct)[0]
            np.testing.assert_allclose(*(np.float32(z) for z in gradients), rtol=1e-6, atol=1e-7)


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
