"""Memory that sampling one picture at full size needs on a TPU chip that need not be attached.

    pip install 'jax[tpu]' && JAX_PLATFORMS=cpu python -m benchmarks.sampling_memory

Compiles the real sampler, FLUX.1-dev with the adapter, 1024 x 1024, 28 steps, bfloat16, for one
v5p chip, and writes the compiler's account of memory to sampling_memory.json.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

os.environ |= {  # libtpu asks the machine for a TPU otherwise
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
}

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from ic_jax import sampler
from ic_jax.measuring.origin import origin
from ic_jax.models.features import SubjectFeatures
from ic_jax.models.rope import Rope
from ic_jax.models.target import compiling_for
from tests import parameters

TOPOLOGY, STEPS, IMAGE_TOKENS, TEXT_TOKENS = "v5p:2x2x1", 28, 4096, 512


def main() -> None:
    chip = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY).devices[0]
    here = SingleDeviceSharding(chip)

    def shaped(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=here)

    def half(*shape: int) -> jax.ShapeDtypeStruct:
        return shaped(*shape, dtype=jnp.bfloat16)

    flux, adapter = (
        jax.tree.map(lambda x: half(*x.shape), parameters.full_size(name))
        for name in ("flux-dev", "instantcharacter")
    )
    tokens = IMAGE_TOKENS + TEXT_TOKENS
    request = sampler.SamplingRequest(
        latents=shaped(1, IMAGE_TOKENS, 64),
        prompt=sampler.TextEmbeddings(half(1, TEXT_TOKENS, 4096), half(1, 768)),
        guidance_scale=shaped(1),
        sigmas=shaped(STEPS + 1),
        rope=Rope(shaped(tokens, 64), shaped(tokens, 64)),
        subject=sampler.Subject(
            SubjectFeatures(*(half(1, n * 729, 2688) for n in (1, 3, 4))), shaped(1)
        ),
    )
    start = time.perf_counter()
    with compiling_for("tpu"):
        program = jax.jit(sampler.sample).lower(flux, adapter, request).compile()
    memory = program.memory_analysis()
    result = {
        "chip": chip.device_kind,
        "weights_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "compile_seconds": round(time.perf_counter() - start, 1),
        **origin("jax", "flax", "libtpu"),
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
