"""The command line: python -m convert from-torch | to-torch | inspect."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # shapes alone are asked of JAX: reserve nothing

from convert import from_torch, inspect_model, to_torch
from ic_jax import cli


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m convert", description=__doc__)
    top.add_argument("--debug", action="store_true", help="show tracebacks")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("from-torch", help="published weights to a MODEL folder")
    command.set_defaults(run=from_torch.run)
    where = "folder, or Hub id (org/name)"
    command.add_argument("--flux", metavar="PATH", help=f"diffusers {where}, or BFL single file")
    command.add_argument("--siglip", metavar="PATH", help=f"transformers {where}")
    command.add_argument("--dinov2", metavar="PATH", help=f"transformers {where}")
    command.add_argument("--adapter", metavar="FILE", help="the adapter's .bin or .safetensors")
    command.add_argument(
        "--adapter-config",
        metavar="JSON",
        help="its sizes, if not published; by default a .json of the same name beside it",
    )
    command.add_argument("--vae", metavar="PATH", help=f"diffusers {where}, or BFL's ae file")
    command.add_argument("--t5", metavar="PATH", help=f"transformers {where}")
    command.add_argument("--clip", metavar="PATH", help=f"transformers {where}")
    command.add_argument("--tokenizer", metavar="DIR", help="CLIP's, if not beside it")
    command.add_argument("--tokenizer-2", metavar="DIR", help="T5's, if not beside it")
    command.add_argument("--out", metavar="MODEL", required=True)
    command.add_argument("--dtype", choices=from_torch.DTYPES, help="default: as in the files")
    command.add_argument("--overwrite", action="store_true")

    command = commands.add_parser("to-torch", help="a MODEL folder to published layouts")
    command.set_defaults(run=to_torch.run)
    command.add_argument("model", metavar="MODEL")
    command.add_argument("--out", metavar="DIR", required=True)
    command.add_argument(
        "--bfl", action="store_true", help="transformer and VAE as BFL single files"
    )
    command.add_argument("--overwrite", action="store_true")

    command = commands.add_parser("inspect", help="what a MODEL folder holds")
    command.set_defaults(run=inspect_model.run)
    command.add_argument("model", metavar="MODEL")
    command.add_argument("--verify", action="store_true", help="compare every checksum")
    for command in commands.choices.values():
        command.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks"
        )
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code, see `ic_jax.cli.run`."""
    args = parser().parse_args(arguments)
    return cli.run(lambda: args.run(args), debug=args.debug)


if __name__ == "__main__":
    # As an exception, so that what was half written is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
