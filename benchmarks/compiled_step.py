"""Cost of one sampling step as compiled for absent accelerators, beside an earlier checkout.

    git worktree add EARLIER 8db4d1a
    pip install '.[cuda13,tpu]'                       # JAX 0.12
    python -m benchmarks.compiled_step EARLIER        # both, side by side
    python -m benchmarks.compiled_step --growth       # this one, as tokens and batch grow
    python -m benchmarks.compiled_step EARLIER --training --targets v6e:1x1

A step of FLUX.1-dev with the adapter at 1024 x 1024 is compiled with two double and four single
blocks for one H200 and one TPU v6e, with and without the adapter. Of 19 and 38 blocks the whole
step has 9.5 times as much, apart from the first and last projection; `infer plan` compiles it
whole, in ten minutes for a TPU. Figures are read off the compiled programs: bytes moved and of them
copies of weights (GPU), and the compiler's estimate of milliseconds outside attention (TPU). With
--training the same of the gradient of the adapter's image-prompt attention, each block recomputed.
Writes compiled_step.json, compiled_growth.json and compiled_training.json beside this script.
"""

import argparse
import dataclasses
import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent.parent
TARGETS = ("h200:1", "v6e:1x1")
REPEATS = 9.5  # of two double and four single blocks
SIDES = (512, 768, 1024, 1536, 2048)  # pixels
BATCHES = (1, 2, 4, 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("earlier", nargs="?", type=Path, help="checkout of an earlier version")
    parser.add_argument("--growth", action="store_true", help="tokens and batch of this version")
    parser.add_argument("--training", action="store_true", help="the gradient in place of a step")
    parser.add_argument("--targets", nargs="+", default=TARGETS, help="topologies of one device")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        cost = gradient_cost if args.child.pop("training", False) else step_cost
        print(json.dumps(cost(**args.child)))
    elif args.growth:
        _write("compiled_growth", growth())
    else:
        checkouts = {"now": HERE} | ({"earlier": args.earlier} if args.earlier else {})
        programs: dict[str, dict[str, Any]] = {
            "with the adapter": {"adapter": True},
            "plain FLUX": {"adapter": False},
        }
        if args.training:
            programs = {"gradient": {"training": True}}
        results = {
            target: {
                name: {
                    label: _cost(checkout, topology=target, **settings)
                    for label, settings in programs.items()
                }
                for name, checkout in checkouts.items()
            }
            for target in args.targets
        }
        _write("compiled_training" if args.training else "compiled_step", results)


def growth() -> dict[str, Any]:
    """Return the costs by side and by batch, and the exponents that fit their ends best."""
    sides = {side: _cost(HERE, topology="h200:1", side=side) for side in SIDES}
    batches = {batch: _cost(HERE, topology="h200:1", side=512, batch=batch) for batch in BATCHES}
    tokens = {(side // 16) ** 2 + 512: cost for side, cost in sides.items()}
    return {
        "by side in pixels": sides,
        "by batch at 512 pixels": batches,
        "exponents of tokens": _exponents(tokens),
        "exponents of the batch": _exponents(batches),
    }


def _exponents(costs: dict[int, dict[str, float]]) -> dict[str, float]:
    """Return the slopes of least squares through the logarithms of costs over sizes."""
    x = [math.log(size) for size in costs]
    mean = sum(x) / len(x)
    slopes = {}
    for name in ("TFLOP", "GB moved"):
        y = [math.log(cost[name]) for cost in costs.values()]
        products = [(a - mean) * b for a, b in zip(x, y, strict=True)]
        slopes[name] = round(sum(products) / sum((a - mean) ** 2 for a in x), 3)
    return slopes


def _cost(checkout: Path, **settings: Any) -> dict[str, Any]:
    """Return `step_cost` of a checkout, computed in a process of its own."""
    run = [sys.executable, __file__, "--child", json.dumps(settings)]
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    done = subprocess.run(
        run, env=environment, cwd=checkout, check=True, stdout=subprocess.PIPE, text=True
    )
    cost = json.loads(done.stdout.splitlines()[-1])
    print(checkout.name, settings, cost, flush=True)
    return cost


def step_cost(
    topology: str, side: int = 1024, batch: int = 1, *, adapter: bool = True
) -> dict[str, Any]:
    """Compile a step of six blocks and return its cost for all blocks."""
    from infer.plan_command import programs

    shapes, mesh = _shapes(), _mesh(topology)
    options = argparse.Namespace(
        height=side,
        width=side,
        steps=28,
        batch=batch,
        text_length=512,
        reference=False,
        split_prepare=True,
    )
    _, step = programs(options, shapes, mesh)
    if not adapter:
        models, (_, conditioning, *others) = step.arguments[:1], step.arguments[1:]
        steps = conditioning.steps._replace(subject_tokens=None)
        arguments = (*models, None, conditioning._replace(steps=steps), *others)
        labels = tuple(
            None if x is None else label for x, label in zip(arguments, step.labels, strict=True)
        )
        step = dataclasses.replace(step, arguments=arguments, labels=labels)
    return _cost_of(step)


def gradient_cost(topology: str) -> dict[str, Any]:
    """Compile the gradient of six blocks by image-prompt attention, and return its cost for all."""
    import jax
    import jax.numpy as jnp

    from ic_jax.models.flux import Flux
    from ic_jax.models.image_prompt import ImagePrompt
    from ic_jax.models.rope import Rope
    from ic_jax.planning.compile_plan import (
        PlannedProgram,
        batch_shapes,
        replicated_shapes,
        sharded_shapes,
    )

    shapes, mesh = _shapes(), _mesh(topology)
    models = [shapes["transformer"], shapes["adapter"].ip_adapter]
    if find_spec("ic_jax.models.unstacked"):  # as training has it; the earlier version had one form
        from ic_jax.models.unstacked import split_output

        models[0] = jax.eval_shape(split_output, models[0])

    def gradient(attention: Any, flux: Any, arrays: dict[str, Any], rope: Any) -> Any:
        def loss(attention: Any) -> Any:
            prompt = ImagePrompt(attention, arrays["tokens"], arrays["t"])
            names = ("latents", "prompt_embeds", "pooled", "t", "guidance")
            inputs = (arrays[name] for name in names)
            velocity = Flux.__call__(flux, *inputs, rope, prompt, remat="blocks")
            return jnp.square(velocity.astype(jnp.float32)).mean()

        return jax.grad(loss)(attention)

    def shape(*dims: int, dtype: Any = jnp.bfloat16) -> Any:
        return jax.ShapeDtypeStruct(dims, dtype)

    arrays = {
        "latents": shape(1, 4096, 64),
        "prompt_embeds": shape(1, 512, 4096),
        "pooled": shape(1, 768),
        "t": shape(1, dtype=jnp.float32),
        "guidance": shape(1, dtype=jnp.float32),
        "tokens": shape(1, 1024, 4096),
    }
    rope = Rope(shape(4608, 64, dtype=jnp.float32), shape(4608, 64, dtype=jnp.float32))
    flux, attention = (sharded_shapes(model, mesh) for model in models)
    arguments = (attention, flux, batch_shapes(arrays, mesh), replicated_shapes(rope, mesh))
    cost = _cost_of(PlannedProgram("gradient", gradient, arguments, "arguments", mesh, 10))
    # XLA for TPUs writes products of this program as convolutions over padding, which counts too.
    del cost["TFLOP"]
    return cost


def _shapes() -> dict[str, Any]:
    """Return the published shapes, with two double and four single blocks."""
    import jax.numpy as jnp

    from ic_jax import auto_mesh
    from ic_jax.config import CONFIGS
    from ic_jax.weights.loading import abstract

    shapes = auto_mesh.published(jnp.bfloat16)
    flux = dataclasses.replace(CONFIGS["flux-dev"], num_layers=2, num_single_layers=4)  # type: ignore[type-var]
    for name in ("transformer", "adapter"):
        module = abstract(name, shapes[name].config if name == "adapter" else flux, flux)
        shapes[name] = auto_mesh._cast(module, jnp.bfloat16)
    return shapes


def _mesh(topology: str) -> Any:
    from ic_jax.planning.topologies import topology_devices
    from ic_jax.sharding import make_mesh, parse

    return make_mesh(parse("data=1"), topology_devices(topology))


def _cost_of(program: Any) -> dict[str, Any]:
    from ic_jax.devices import Chip
    from ic_jax.planning.compile_plan import compile_report

    report = compile_report(program)
    work, chip = report.work, Chip.of(program.device)
    assert work is not None
    assert chip is not None
    cost = {
        "TFLOP": REPEATS * work.flops / 1e12,
        "GB moved": REPEATS * work.bytes / 1e9,
        "GB of copies of weights": REPEATS * work.weight_copies / 1e9,
    }
    if chip.clock:
        for kind in ("products", "others"):
            cycles = getattr(work.cycles, kind)
            cost[f"ms by the compiler, {kind}"] = REPEATS * 1e3 * cycles / chip.clock
    return {name: round(value, 2) for name, value in cost.items()}


def _write(name: str, results: dict[str, Any]) -> None:
    from ic_jax.measuring.origin import origin

    file = Path(__file__).with_name(f"{name}.json")
    results |= origin("jax", "flax")
    file.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
