"""The small model served to 8 clients: seconds of a request with and without batches, and memory.

    python -m benchmarks.serving [--requests 200] [--repeats 2]

Servers with batches of up to 4 and of 1 take turns; every one is a fresh process. Each of the
clients, OpenAI's own, asks for a picture as soon as it has the last one: other prompts, seeds and
one of three characters, which are named by their hash. Every picture is compared with that of the
pipeline itself. Cores may be shared with other work, so the processor time of the servers stands
beside. Writes serving.json beside this script.
"""

import argparse
import base64
import io
import json
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.request import urlopen

import numpy as np
import openai
from PIL import Image

from ic_jax import InstantCharacterPipeline
from ic_jax.measuring.origin import origin

ROOT = Path(__file__).parent.parent
CLIENTS, BATCH, STEPS = 8, 4, 4
PROMPTS = (
    "A portrait of a person waving, in a red hoodie, on plain teal.",
    "A person shrugging with both palms up, on a pink background.",
    "A bust of a character with a calm smile, on a lavender background.",
    "A full-body picture of a person riding a bicycle, in a green jacket.",
)


@dataclass(frozen=True)
class Asked:
    """One picture to ask for."""

    prompt: str
    seed: int
    character: int  # index of `characters`


class ServerProcess:
    """A process of `python -m infer serve` on a free port; `with` ends it by SIGTERM."""

    def __init__(self, *options: str):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "infer", "serve", "--port", "0", *options],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        lines: list[str] = []
        for line in self.process.stdout:
            lines.append(line)
            if match := re.match(r"serving at (\S+)/v1 ", line):
                self.url = match[1]
                return
        raise RuntimeError(f"the server ended: {lines} {self.process.communicate()[1]}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def client(self) -> openai.OpenAI:
        """Return a client that does not ask again by itself."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="any", max_retries=0)

    def metric(self, name: str) -> float:
        """Return a metric's value; a counter with labels is absent until it counts."""
        with urlopen(f"{self.url}/metrics") as answer:
            text = answer.read().decode()
        values = re.findall(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(values[0]) if values else 0.0


def characters() -> list[bytes]:
    """Return PNG files of three characters: the demo's, mirrored and upside down."""
    demo = Image.open(ROOT / "infer" / "demo.png").convert("RGB")
    files = []
    for image in (demo, demo.transpose(Image.Transpose.FLIP_LEFT_RIGHT), demo.rotate(180)):
        file = io.BytesIO()
        image.save(file, "PNG")
        files.append(file.getvalue())
    return files


def requests(count: int) -> list[Asked]:
    """Return requests with seeds of their own."""
    return [Asked(PROMPTS[i % len(PROMPTS)], 1000 + i, i % 3) for i in range(count)]


def send_characters(server: ServerProcess) -> list[str]:
    """Send each character; return the hashes that name them. Batches of 1, 2 and 4 are compiled."""
    ours = {"num_inference_steps": STEPS}
    with server.client() as client:
        answers: list[Any] = [
            client.images.edit(image=file, prompt=PROMPTS[0], n=n, extra_body=ours)
            for n, file in zip((1, 2, BATCH), characters(), strict=True)
        ]
    return [answer.subjects[0] for answer in answers]


def ask_all(
    server: ServerProcess, asked: Sequence[Asked], hashes: Sequence[str]
) -> tuple[list[np.ndarray], list[float]]:
    """Ask for all pictures from 8 clients at once; return them in order, and each one's seconds."""
    local = threading.local()

    def ask(one: Asked) -> tuple[np.ndarray, float]:
        if not hasattr(local, "client"):
            local.client = server.client()
        ours = {"seed": one.seed, "subject": hashes[one.character], "num_inference_steps": STEPS}
        start = time.perf_counter()
        answer = local.client.images.generate(prompt=one.prompt, extra_body=ours)
        seconds = time.perf_counter() - start
        return np.asarray(
            Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json)))
        ), seconds

    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(ask, asked))
    pictures, seconds = zip(*answers, strict=True)
    return list(pictures), list(seconds)


def expected(pipe: InstantCharacterPipeline, asked: Sequence[Asked]) -> list[np.ndarray]:
    """Return the pictures that the pipeline itself draws."""
    files = [Image.open(io.BytesIO(file)) for file in characters()]
    subjects = [pipe.encode_subject(file) for file in files]
    pictures: list[np.ndarray] = []
    for first in range(0, len(asked), BATCH):
        batch = asked[first : first + BATCH]
        result = pipe(
            [one.prompt for one in batch],
            seed=[one.seed for one in batch],
            subject_image=[subjects[one.character] for one in batch],
            num_inference_steps=STEPS,
            callback_on_step_end=lambda *_: None,
        )
        pictures += map(np.asarray, result.images)
    return pictures


def largest_difference(pictures: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> int:
    """Return the largest difference of any byte."""
    pairs = zip(pictures, others, strict=True)
    return max(int(np.abs(a.astype(np.int32) - b.astype(np.int32)).max()) for a, b in pairs)


def measure(max_batch: int, asked: Sequence[Asked], own: Sequence[np.ndarray]) -> dict[str, Any]:
    """Start a server, ask it for all pictures, and return what was measured."""
    with ServerProcess("--max-batch", str(max_batch), "--no-warm-up") as server:
        hashes = send_characters(server)
        fifth = len(asked) // 5
        first, _ = ask_all(server, asked[:fifth], hashes)
        memory = [server.metric("process_resident_memory_bytes")]
        cpu, start = server.metric("process_cpu_seconds_total"), time.perf_counter()
        pictures, seconds = ask_all(server, asked, hashes)
        wall = time.perf_counter() - start
        cpu = server.metric("process_cpu_seconds_total") - cpu
        memory.append(server.metric("process_resident_memory_bytes"))
    return {
        "seconds": seconds,
        "wall": wall,
        "processor": cpu,
        "MiB": [round(x / 2**20) for x in memory],
        "largest difference": largest_difference([*first, *pictures], [*own[:fifth], *own]),
        "exit code": server.process.returncode,
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of all runs of one kind."""
    seconds = sorted(x for run in runs for x in run["seconds"])
    percentiles = statistics.quantiles(seconds, n=100)
    pictures = len(seconds)
    return {
        "requests": pictures,
        "p50 seconds": round(percentiles[49], 2),
        "p99 seconds": round(percentiles[98], 2),
        "pictures per second": round(pictures / sum(run["wall"] for run in runs), 2),
        "processor seconds per picture": round(sum(r["processor"] for r in runs) / pictures, 3),
        "MiB after a fifth, and after all": [run["MiB"] for run in runs],
        "largest difference from the pipeline, of 255": max(r["largest difference"] for r in runs),
        "exit codes": [run["exit code"] for run in runs],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=200, help="of each run")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each kind")
    args = parser.parse_args()
    asked = requests(args.requests)
    own = expected(InstantCharacterPipeline.from_pretrained(dtype="float32"), asked)
    runs: dict[int, list[dict[str, Any]]] = {BATCH: [], 1: []}
    for _ in range(args.repeats):
        for max_batch, results in runs.items():
            results.append(measure(max_batch, asked, own))
    report = {
        "clients": CLIENTS,
        "steps": STEPS,
        "max_batch": {str(max_batch): summary(results) for max_batch, results in runs.items()},
        **origin("jax", "jaxlib", "flax", "starlette", "uvicorn", "openai"),
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
