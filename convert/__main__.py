"""`python -m convert`."""

import os
import signal
import sys

if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # only shapes are computed: reserve no device
    # SIGTERM raises an exception, so that a half-written folder is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        from convert.commands import main
        from ic_jax.cli import leave

        leave(main())
    except KeyboardInterrupt:  # while importing
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)
