"""Speed of drawing on this machine's CPU: this checkout and an earlier one in turns.

    git worktree add EARLIER 8db4d1a
    python -m benchmarks.drawing_speed EARLIER [--rounds 5]

Each round starts a process of either checkout, which loads the small model, draws a picture to
compile, and then times three more. Cores may be shared with other work: processor seconds stand
beside wall seconds, and what counts is the ratio. Writes drawing_speed.json beside this script.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent.parent
PICTURES = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("earlier", nargs="?", type=Path, help="checkout of an earlier version")
    parser.add_argument("--rounds", type=int, default=5, help="processes of each checkout")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(seconds_a_picture()))
        return
    checkouts = {"now": HERE, "earlier": args.earlier}
    times: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
    for _ in range(args.rounds):
        for name, checkout in checkouts.items():
            run = [sys.executable, __file__, "--child"]
            environment = os.environ | {"PYTHONPATH": str(checkout)}
            done = subprocess.run(
                run, env=environment, cwd=checkout, check=True, stdout=subprocess.PIPE, text=True
            )
            times[name] += json.loads(done.stdout.splitlines()[-1])
            print(name, times[name][-PICTURES:], flush=True)
    _write(times)


def seconds_a_picture() -> list[dict[str, float]]:
    """Return the seconds of pictures of the small model, after one that compiled."""
    from ic_jax import InstantCharacterPipeline

    pipe = InstantCharacterPipeline.from_pretrained(dtype="float32")
    subject = pipe.encode_subject(HERE / "infer" / "demo.png")
    prompt, seconds = "A person riding a bicycle.", []
    for i in range(1 + PICTURES):
        wall, processor = time.perf_counter(), time.process_time()
        pipe(prompt, subject_image=subject, seed=i)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        seconds.append({"wall": round(wall, 4), "processor": round(processor, 4)})
    return seconds[1:]


def _write(times: dict[str, list[dict[str, float]]]) -> None:
    from ic_jax.measuring.origin import origin

    medians = {
        name: {kind: statistics.median(t[kind] for t in runs) for kind in ("wall", "processor")}
        for name, runs in times.items()
    }
    ratios = {
        kind: round(medians["now"][kind] / medians["earlier"][kind], 3) for kind in medians["now"]
    }
    results = {"medians": medians, "now / earlier": ratios, "seconds": times} | origin(
        "jax", "flax"
    )
    Path(__file__).with_suffix(".json").write_text(json.dumps(results, indent=2) + "\n")
    print(medians, ratios)


if __name__ == "__main__":
    main()
