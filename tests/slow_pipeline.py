"""Stand-in for a pipeline, whose drawing a test holds up."""

import threading
import time
import warnings

import numpy as np
from PIL import Image

from ic_jax import PipelineResult

PATIENCE = 300  # seconds for what takes a moment: the machine may be busy


class SlowPipeline:
    """Pipeline that draws its seed as a grey, each step when the test sets `step`.

    Seed 666 cannot be drawn, and a secret is warned of.
    """

    def __init__(self, pipe):
        self.sampling, self.vae, self.transformer = pipe.sampling, pipe.vae, pipe.transformer
        self.adapter, self.mesh, self.dtype = pipe.adapter, None, pipe.dtype
        self.step = threading.Event()
        self.drawn: list[list[int]] = []
        self.arguments: dict = {}  # of the last call
        self.adapters: list[dict] = []

    def get_list_adapters(self):
        return {"transformer": ["ink"]}

    def set_adapters(self, names, weights):
        self.adapters.append(dict(zip(names, weights, strict=True)))

    def encode_subject(self, *_):
        return np.ones(1)

    def __call__(self, *, seed, num_inference_steps, callback_on_step_end, **arguments):
        self.arguments = arguments
        if 666 in seed:
            raise FloatingPointError("not finite")
        if (prompt := arguments["prompt"][0]) == "a secret":
            warnings.warn(f"cannot read {prompt}", stacklevel=1)
        for index in range(num_inference_steps):
            assert self.step.wait(PATIENCE)
            callback_on_step_end(self, index, 0.0, {"latents": np.zeros((len(seed), 36, 64))})
        self.drawn.append(list(seed))
        return PipelineResult([Image.new("L", (4, 4), x) for x in seed], list(seed))


def eventually(condition):
    """Wait until a condition holds, which it does in time."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
