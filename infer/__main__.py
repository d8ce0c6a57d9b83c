"""`python -m infer`."""

import sys

if __name__ == "__main__":
    try:
        from ic_jax.cli import leave
        from infer.commands import main

        leave(main())
    except KeyboardInterrupt:  # while importing
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)
