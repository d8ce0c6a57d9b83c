"""`python -m examples.open_peeps.train_all`."""

import sys

if __name__ == "__main__":
    try:
        from examples.open_peeps.train_all.commands import main
        from ic_jax.cli import leave

        leave(main())
    except KeyboardInterrupt:  # while importing
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)
