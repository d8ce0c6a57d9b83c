"""Signals that are heard at once, also where Python's own handlers are late or dropped."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

INTERRUPTED = 130  # exit code
PATIENCE = 0.5  # seconds after which an interrupt that has no effect yet is acknowledged
WORD = b"\ninterrupted: waiting for what is being computed; a second time ends it at once\n"


@contextmanager
def answered(answer: Callable[[int], None]) -> Iterator[None]:
    """Call `answer` with the number of each signal that has a handler, as it arrives, in a thread.

    Python runs the handler itself in the main thread, after the call that this is in: a compilation
    takes minutes. Outside of the main thread nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def listen() -> None:
        while numbers := os.read(reader, 64):
            for number in numbers:
                answer(number)

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)  # ends the thread
        thread.join()
        os.close(reader)


@contextmanager
def interrupts_arrive() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGINT, and acknowledge one that has no effect yet by a word.

    It is raised again where Python drops it, in a finaliser or a callback. A second SIGINT ends the
    process at once. A command's own handler of SIGINT, or none, is left alone.
    """
    hook, handler, done = sys.unraisablehook, signal.getsignal(signal.SIGINT), threading.Event()
    heard = raised_again = 0

    def again(unraisable: Any) -> None:
        nonlocal raised_again
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            hook(unraisable)
            return
        raised_again += 1
        main_thread = threading.main_thread().ident, signal.SIGINT
        timer = threading.Timer(0.05, signal.pthread_kill, main_thread)  # after the callback
        timer.daemon = True
        timer.start()

    def answer(number: int) -> None:
        nonlocal heard, raised_again
        is_ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if number != signal.SIGINT or not is_ours:
            return
        if raised_again:
            raised_again -= 1
            return
        heard += 1
        if heard > 1:
            os._exit(INTERRUPTED)
        if not done.wait(PATIENCE):
            os.write(2, WORD)

    is_main = threading.current_thread() is threading.main_thread()
    if is_main and handler is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.unraisablehook = again
    try:
        with answered(answer):
            try:
                yield
            finally:
                done.set()
    finally:
        sys.unraisablehook = hook
        if is_main and handler is not None:
            signal.signal(signal.SIGINT, handler)
