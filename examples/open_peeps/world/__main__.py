"""`python -m examples.open_peeps.world`."""

import sys

if __name__ == "__main__":
    try:
        from ic_jax.cli import leave, start

        leave(start("examples.open_peeps.world.commands"))
    except KeyboardInterrupt:  # while importing
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)
