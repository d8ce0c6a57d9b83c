"""A mesh of virtual devices against one device: sampling, training, the sharding of every array."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ic_jax import sampler
from ic_jax.config import AdapterConfig, FluxConfig
from ic_jax.flow import position_ids
from ic_jax.models.features import SubjectFeatures
from ic_jax.models.rope import rope_table
from ic_jax.planning.hlo_cost import work_of
from ic_jax.sharding import AXES, RULES, ShardingError, make_mesh, parse, shardings, to_global_array
from ic_jax.weights import loading, model_folder
from tests import toy
from tests.oracle import relative
from train.checkpoints import Checkpoints
from train.encode import Frozen, Ids, Reference, StepBatch, StepScalars, encode, row_keys
from train.objective import Examples
from train.optimizer import optimizer
from train.recipe import Saving, Stage
from train.step import TrainState, apply_gradient, mean_gradient

FLUX = FluxConfig(
    num_layers=2,
    num_single_layers=2,
    num_attention_heads=8,
    attention_head_dim=16,
    joint_attention_dim=16,
    pooled_projection_dim=16,
    axes_dims_rope=(4, 6, 6),
    in_channels=8,
)
ADAPTER = AdapterConfig(**(toy.CONFIGS["adapter"].to_dict() | {"output_dim": 32}))
RATE = 1e-3
MESHES = (
    "data=2,fsdp=2,tensor=2",
    # Slow: each compiles for 8 devices, and the mesh above already shards rows and parameters.
    pytest.param("fsdp=2,tensor=2,context=2", marks=pytest.mark.slow),
    # Rare: every axis is in a mesh above, and fsdp=8 in tests below.
    *(pytest.param(f"{axis}=8", marks=pytest.mark.rare) for axis in AXES),
)


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def component(seed, kind, *configs):
    """Return a component with random values in all parameters, also in those that start at zero."""
    rng = np.random.default_rng(seed)

    def values(x):
        fan_in = x.shape[-2] if x.ndim > 1 else 1
        return jnp.asarray(rng.standard_normal(x.shape, np.float32) / math.sqrt(fan_in))

    return jax.tree.map(values, loading.abstract(kind, *configs))


@pytest.fixture(scope="module")
def models():
    return component(0, "transformer", FLUX), component(1, "adapter", ADAPTER, FLUX)


def request(rows):
    features = SubjectFeatures(*(random(rows // 2, n * 4, 32, seed=n) for n in (1, 3, 4)))
    prompt = sampler.TextEmbeddings(random(rows, 16, 16), random(rows, 16, seed=1))
    return sampler.SamplingRequest(
        latents=random(rows, 64, 8),
        prompt=prompt,
        guidance_scale=np.full(rows, 3.5, np.float32),
        sigmas=np.array([1.0, 0.6, 0.0], np.float32),
        rope=rope_table(position_ids(16, 8, 8), FLUX),
        subject=sampler.Subject(features, np.linspace(0.5, 1, rows, dtype=np.float32)),
        true_cfg=sampler.TrueCfg(
            sampler.TextEmbeddings(random(rows, 16, 16, seed=8), random(rows, 16, seed=9)),
            np.full(rows, 2.0, np.float32),
            np.linspace(0, 0.5, rows, dtype=np.float32),
        ),
    )


@pytest.fixture(scope="module")
def latents(models):
    """The result of sampling on one device."""
    return jax.jit(sampler.sample)(*models, request(8))


@pytest.mark.parametrize("text", MESHES)
def test_sampling_equals_one_device(models, latents, text):
    mesh = make_mesh(parse(text))
    sharded = jax.device_put(models, shardings(models, mesh))
    with jax.set_mesh(mesh):
        ours = jax.jit(sampler.sample)(*sharded, request(8))
    assert len(ours.sharding.device_set) == 8
    assert relative(ours, latents) < 1e-5


def step(state, flux, examples, rope, *, adamw):
    """Train on one batch, as train_step without its encoders, which have their own test."""
    value, gradient, *_ = mean_gradient(
        state.params, flux, rope, lambda e: e, examples, 1, remat="blocks"
    )
    rate, decay = jnp.float32(RATE), jnp.float32(0.9)
    state, _ = apply_gradient(state, value, gradient, rate, decay, optimizer=adamw)
    return state, value


class Trainer:
    """The state, the base and the compiled step of training, on each mesh and on one device."""

    def __init__(self, models):
        self.compiled = {}
        self.adamw = optimizer("adamw", Stage(steps=3, clip=toy.CLIP))
        self.flux, self.rope = models[0], rope_table(position_ids(16, 8, 8), FLUX)
        self.state = TrainState.start(models[1], self.adamw, ema=True)

    def examples(self, number):
        r = request(8)
        return Examples(
            latents=random(8, 64, 8, seed=number),
            noise=random(8, 64, 8, seed=number + 10),
            sigma=np.linspace(0.1, 0.9, 8, dtype=np.float32),
            prompt_embeds=r.prompt.embeds,
            pooled=r.prompt.pooled,
            features=SubjectFeatures(*(np.repeat(x, 2, axis=0) for x in r.subject.features)),
            subject_scale=np.linspace(0, 1, 8, dtype=np.float32),
            guidance=np.ones(8, np.float32),
        )

    def on(self, text, replicate=False):
        """Return `compile(text, replicate)`, compiled once."""
        if (text, replicate) not in self.compiled:
            self.compiled[text, replicate] = self.compile(text, replicate)
        return self.compiled[text, replicate]

    def compile(self, text, replicate):
        """Return first state, base, compiled step, and shardings of the batch and other arguments.

        `text` describes the mesh; "" is one device.
        """
        run = partial(step, adamw=self.adamw)
        if not text:
            program = jax.jit(run).lower(self.state, self.flux, self.examples(0), self.rope)
            return self.state, self.flux, program.compile(), (None, None)
        mesh = make_mesh(parse(text))
        by_rows, replicated = (NamedSharding(mesh, P(axes)) for axes in (RULES["batch"], None))
        state_shardings = shardings(self.state, mesh)
        state = jax.device_put(self.state, state_shardings)
        flux = jax.device_put(self.flux, shardings(self.flux, mesh, replicate=replicate))
        data = jax.device_put(self.examples(0), by_rows), jax.device_put(self.rope, replicated)
        with jax.set_mesh(mesh):
            program = jax.jit(run, out_shardings=(state_shardings, None)).lower(state, flux, *data)
            return state, flux, program.compile(), (by_rows, replicated)

    def train(self, text, replicate=False, state=None, numbers=(0, 1, 2)):
        """Train on batches of these numbers; return the state and the losses."""
        first, flux, program, (by_rows, replicated) = self.on(text, replicate)
        state, losses = first if state is None else state, []
        for number in numbers:
            examples = jax.device_put(self.examples(number), by_rows)
            state, loss = program(state, flux, examples, jax.device_put(self.rope, replicated))
            losses.append(float(loss))
        return state, losses


@pytest.fixture(scope="module")
def trainer(models):
    with jax.numpy_dtype_promotion("standard"):  # Adam's count is an integer
        yield Trainer(models)


def test_encoding_equals_one_device(models):
    """The encoders' weights are sharded over all axes, the batch over one."""
    kinds = ("vae", "siglip", "dinov2", "t5", "clip")
    encoders = {kind: component(i, kind, toy.CONFIGS[kind]) for i, kind in enumerate(kinds, 5)}
    frozen, rng = Frozen(models[0], **encoders), np.random.default_rng(0)
    target, low = (rng.integers(0, 255, (8, 32, 32, 3), np.uint8) for _ in range(2))
    tiles = rng.integers(0, 255, (8, 4, 32, 32, 3), np.uint8)
    ids = (rng.integers(0, 100, (8, 16)).astype(np.int32) for _ in range(2))
    cells = 32 // toy.CONFIGS["vae"].downscale
    focus = rng.uniform(size=(8, cells, cells)).astype(np.float32)
    empty = Ids(np.zeros(16, np.int32), np.zeros(16, np.int32))
    scalars = StepScalars(*(np.float32(x) for x in (1e-2, 1.5, 1.0, 0.3, 0.3, 0.9, 0.5)))
    batch = StepBatch(target, Ids(*ids), Reference(low, tiles), focus)

    def encoded(frozen, batch):
        keys = row_keys(jnp.int32(0), jnp.int32(3), batch)
        return encode(frozen, batch, keys, empty, scalars, ADAPTER, "logit-normal", jnp.float32)

    expected = jax.jit(encoded)(frozen, batch)
    mesh = make_mesh(parse("fsdp=2,tensor=2,context=2"))
    sharded = jax.device_put(frozen, shardings(frozen, mesh))
    rows = jax.device_put(batch, NamedSharding(mesh, P(RULES["batch"])))
    with jax.set_mesh(mesh):
        ours = jax.jit(encoded)(sharded, rows)
    assert max(jax.tree.leaves(jax.tree.map(relative, ours, expected))) < 1e-5


@pytest.mark.parametrize("text", MESHES)
def test_three_steps_equal_one_device(trainer, text):
    check_three_steps(trainer, text, replicate=False)


@pytest.mark.slow  # compiles the step once more
def test_three_steps_with_a_replicated_base_equal_one_device(trainer):
    check_three_steps(trainer, "data=2,fsdp=4", replicate=True)


def check_three_steps(trainer, text, replicate):
    mesh = make_mesh(parse(text))
    state, losses = trainer.train(text, replicate)
    expected, expected_losses = trainer.train("")
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    for field in ("params", "ema_params", "opt_state"):
        pairs = zip(*(jax.tree.leaves(getattr(s, field)) for s in (state, expected)), strict=True)
        assert max(relative(a, b) for a, b in pairs if np.linalg.norm(b)) < 1e-5, field

    # Parameters, their averages and their moments are sharded as the table says, copied here.
    axes = {"fsdp": ("embed", "width"), "tensor": ("heads", "mlp", "width"), "context": ("width",)}
    for tree in (state.params, state.ema_params, *(state.opt_state[1][1:])):
        for path, variable in loading.parameters(tree).items():
            shard = variable[...].sharding.shard_shape(variable.shape)
            for axis, size, shard_size in zip(variable.axes, variable.shape, shard, strict=True):
                shards = math.prod(mesh.shape[m] for m, names in axes.items() if axis in names)
                assert shard_size == size // shards, (path, axis)


@pytest.mark.slow  # compiles the step for a mesh of its own
def test_nothing_large_is_replicated(trainer):
    """Parameters, moments and gradients are sharded; only a block's kernels are gathered."""
    state, flux, program, _ = trainer.on("fsdp=8")
    one_device = trainer.on("")[2].memory_analysis()
    memory = program.memory_analysis()
    leaves = jax.tree.leaves((state, flux))
    total = sum(x.nbytes for x in leaves)
    shards = sum(math.prod(x.sharding.shard_shape(x.shape)) * 4 for x in leaves)
    assert shards < 0.15 * total  # an eighth, and the norms
    assert memory.argument_size_in_bytes < shards + 1e6  # the examples
    assert memory.temp_size_in_bytes < 0.3 * one_device.temp_size_in_bytes

    variables = [*loading.parameters(state.params).values()]
    variables += loading.parameters(flux).values()
    block = max(v.size // (v.shape[0] if v.axes[0] == "layers" else 1) for v in variables)
    work = work_of(program.as_text())
    assert work.loops_of_unknown_length == 0
    gathers = [c for c in work.collectives if c.kind == "all-gather"]
    assert gathers
    assert max(c.bytes for c in gathers) <= 4 * block


@pytest.mark.slow  # compiles the step for two meshes
def test_resumed_on_another_mesh(trainer, tmp_path):
    """A state saved on 8 devices is the same on 4 and on 1, and so is the next step's loss."""
    state, _ = trainer.train("fsdp=8", numbers=(0, 1))
    saved = Checkpoints(tmp_path, Saving())
    saved.save(2, state, {"seed": 0})
    saved.close()
    _, (loss,) = trainer.train("fsdp=8", state=state, numbers=(2,))
    for text in ("fsdp=2,tensor=2", ""):
        first = trainer.on(text)[0]
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), first
        )
        checkpoints = Checkpoints(tmp_path, Saving())
        restored = checkpoints.restore(shapes, {"seed": 0})
        checkpoints.close()
        pairs = list(zip(*map(jax.tree.leaves, (restored, state, first)), strict=True))
        for ours, theirs, expected in pairs:
            np.testing.assert_array_equal(ours, theirs)
            assert ours.sharding.device_set == expected.sharding.device_set
        _, (resumed_loss,) = trainer.train(text, state=restored, numbers=(2,))
        assert resumed_loss == pytest.approx(loss, rel=1e-6)


def test_a_component_is_read_to_its_shards(models, tmp_path):
    with model_folder.create(tmp_path / "model") as writer:
        for kind, module in zip(("transformer", "adapter"), models, strict=True):
            loading.write_component(writer, kind, module)
    mesh = make_mesh(parse("fsdp=4,tensor=2"))
    for kind, module in zip(("transformer", "adapter"), models, strict=True):
        read = loading.load_component(tmp_path / "model", kind, mesh=mesh)
        jax.tree.map(np.testing.assert_array_equal, read, module)
        expected = jax.tree.leaves(shardings(module, mesh))
        assert [x.sharding for x in jax.tree.leaves(read)] == expected
    with pytest.raises(ShardingError, match=r"transformer\..*axis embed, size 128, .* fsdp=3"):
        loading.load_component(tmp_path / "model", "transformer", mesh=make_mesh(parse("fsdp=3")))


class RecordingArray:
    """A NumPy array that records how many bytes each read takes."""

    def __init__(self, array):
        self.array, self.shape, self.read = array, array.shape, []

    def __getitem__(self, index):
        self.read.append(self.array[index].nbytes)
        return self.array[index]


def test_a_shard_is_read_once_and_the_full_array_never():
    mesh = make_mesh(parse("data=2,fsdp=4"))
    source = RecordingArray(random(16, 8))
    result = to_global_array(source, NamedSharding(mesh, P("fsdp")), jnp.float32)
    np.testing.assert_array_equal(result, source.array)
    assert max(source.read) == source.array.nbytes // 4
    assert sum(source.read) <= 2 * source.array.nbytes  # two devices hold each shard


def test_a_size_that_does_not_divide_is_named():
    mesh = make_mesh(parse("tensor=8"))
    few = FluxConfig(
        **(
            FLUX.to_dict()
            | {"num_attention_heads": 4, "attention_head_dim": 32, "axes_dims_rope": (8, 12, 12)}
        )
    )
    flux = loading.abstract("transformer", few)
    with pytest.raises(ShardingError, match=r"to_k.*axis heads, 4 heads, .* by tensor=8"):
        shardings(flux, mesh)
    narrow = loading.abstract("clip", toy.CONFIGS["clip"])
    uneven = make_mesh(parse("fsdp=3,tensor=2"))
    with pytest.raises(ShardingError, match=r"text_model.*: axis width, size 16, .* fsdp=3 x tens"):
        shardings(narrow, uneven)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data=2,pipe=3", "'pipe=3' is not understood"),
        ("data=0", "'data=0'"),
        ("data=2,data=2", "at most once"),
        ("", "is not understood"),
        ("fsdp", "'fsdp'"),
    ],
)
def test_a_mesh_that_is_misspelt(text, message):
    with pytest.raises(ShardingError, match=message):
        parse(text)


def test_a_mesh_of_more_devices_than_there_are():
    with pytest.raises(ShardingError, match="2 x 8 x 1 x 1 needs 16 devices; there are 8"):
        make_mesh(parse("fsdp=8,data=2"))


def test_tokens_that_do_not_divide_are_named(models):
    mesh = make_mesh(parse("context=8"))
    odd = request(2)._replace(
        latents=random(2, 63, 8), rope=rope_table(position_ids(16, 7, 9), FLUX)
    )
    with jax.set_mesh(mesh), pytest.raises(ShardingError, match=r"63 tokens .* context=8"):
        jax.eval_shape(sampler.sample, *models, odd)
