"""`python -m infer app`: its options and its work."""

import argparse
import os
import secrets
import signal
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ic_jax import cli
from ic_jax.cli import say
from infer.app.studio import Studio
from infer.engine import Engine, loading
from infer.engine.address import check_address, is_loopback

PORT = 7860  # Gradio's
USER = "ic_jax"
PASSWORD = "IC_JAX_PASSWORD"  # variable of the environment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `app`."""
    add = parser.add_argument
    host = "address to listen on; any but this machine's own needs --password"
    add("--host", default="127.0.0.1", help=host)
    add("--port", type=cli.count, default=PORT, help="port to listen on")
    password = f"ask for the user {USER} and this password; {PASSWORD} in the environment says it "
    add("--password", help=password + "where nobody else of this machine sees it")
    mcp = "also offer drawing as a tool to MCP clients of this machine"
    add("--mcp", action="store_true", help=mcp)
    loading.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Load the model and show the page until it is interrupted."""
    password = args.password or os.environ.get(PASSWORD)
    check_address(args.host, args.port, password, "--password")
    if args.mcp and not is_loopback(args.host):
        raise ValueError("--mcp asks callers for no password; leave --host out")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # uploads go then, too
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    with tempfile.TemporaryDirectory(prefix="ic_jax-app-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # uploads go when the page does
        _import_extras(with_mcp=args.mcp)
        from infer.app.page import show

        loaded = loading.load_with_loras(args)
        with Engine(loaded.pipe, max_batch=args.max_batch) as engine:
            studio = Studio(engine, loaded, Path(folder))
            blocks = show(studio, args.host, args.port, _login(password), mcp=args.mcp)
            say(f"the page is at {blocks.local_url} until Ctrl-C")
            with suppress(KeyboardInterrupt):
                threading.Event().wait()
            blocks.close(verbose=False)


def _import_extras(*, with_mcp: bool) -> None:
    """Import what an extra brings, so that a missing one is named before weights are read."""
    import gradio  # noqa: F401

    if with_mcp:
        import mcp  # noqa: F401


def _login(password: str | None) -> Callable[[str, str], bool] | None:
    if password is None:
        return None
    expected = f"{USER}:{password}".encode()

    def is_user(name: str, word: str) -> bool:
        return secrets.compare_digest(f"{name}:{word}".encode(), expected)

    return is_user
