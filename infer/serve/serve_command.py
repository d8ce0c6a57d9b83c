"""`python -m infer serve`: its options and its work."""

import argparse
import os

from ic_jax import cli, multihost
from infer.engine import Engine, loading
from infer.engine.address import check_address

PORT = 8000
API_KEY = "IC_JAX_API_KEY"  # variable of the environment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `serve`."""
    add = parser.add_argument
    loading.add_arguments(parser)
    host = "address to listen on; any but this machine's own needs --api-key"
    add("--host", default="127.0.0.1", help=host)
    add("--port", type=_port, default=PORT, help="port to listen on; 0 is any that is free")
    key = f"token that clients must send; {API_KEY} in the environment says it where nobody else of"
    add("--api-key", metavar="TOKEN", help=f"{key} this machine sees it")
    waiting = "most pictures that wait; more are refused with 429"
    add("--max-waiting", type=cli.count, metavar="N", default=64, help=waiting)
    limit = "time for a picture, waiting included; then the answer is 504"
    add("--time-limit", type=cli.positive, metavar="SECONDS", default=600.0, help=limit)
    cold = "listen at once, and compile when the first pictures are asked for"
    add("--no-warm-up", action="store_true", help=cold)


def run(args: argparse.Namespace) -> None:
    """Load the model, compile, and serve until SIGTERM or Ctrl-C."""
    if multihost.is_multiprocess():
        raise ValueError("`serve` runs in a single process")
    api_key = args.api_key or os.environ.get(API_KEY) or None
    check_address(args.host, args.port, api_key, f"--api-key, or {API_KEY} in the environment")
    # Before the weights are read, so that a missing package is named at once.
    import python_multipart  # noqa: F401

    from infer.serve.application import application
    from infer.serve.server import Server

    model = loading.load_with_loras(args)
    engine = Engine(
        model.pipe,
        max_batch=args.max_batch,
        max_waiting=args.max_waiting,
        time_limit=args.time_limit,
    )
    if not args.no_warm_up:
        engine.warm_up(cli.say)
    with engine:
        Server(application(engine, model, api_key), engine, args.host, args.port).run()
    cli.say("stopped")


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port, from 0 to 65535")
    return int(text)
