"""`python -m convert`."""

import gc
import os
import signal
import sys

if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # only shapes are computed: reserve no device
    # SIGTERM raises an exception, so that a half-written folder is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # While importing there is nothing to undo, and libraries drop a KeyboardInterrupt.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(
            signal.SIGINT, lambda *_: os.write(2, b"error: interrupted\n") and os._exit(130)
        )
    gc.disable()  # what is imported stays; to look at it again and again takes half a second
    from convert.commands import main
    from ic_jax.cli import leave

    gc.freeze()
    gc.set_threshold(20_000, 5, 10)  # tracing makes millions of objects, few of them in cycles
    gc.enable()
    leave(main())
