"""`python -m train`."""

import gc
import os
import signal

if __name__ == "__main__":
    # While importing there is nothing to undo, and libraries drop a KeyboardInterrupt.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(
            signal.SIGINT, lambda *_: os.write(2, b"error: interrupted\n") and os._exit(130)
        )
    gc.disable()  # what is imported stays; to look at it again and again takes half a second
    from ic_jax.cli import leave
    from train.commands import main

    gc.freeze()
    gc.set_threshold(20_000, 5, 10)  # tracing makes millions of objects, few of them in cycles
    gc.enable()
    leave(main())
