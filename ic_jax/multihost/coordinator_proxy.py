"""The way to host 0, through a socket of this process, which sees first where it ends.

JAX's client keeps a connection to host 0 open, and as soon as that breaks it aborts the process,
with a stack trace. It has a callback for that, which Python cannot be: its argument, a status, has
no Python type in jaxlib, and the process aborts over that instead. So the client is given a socket
here, everything is passed on, and the end of host 0 comes to us alone.
"""

import shutil
import socket
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread


class CoordinatorProxy:
    """Passes on what is sent to `address` here to host 0, and back."""

    def __init__(self, where: str, silence: float, lost: Callable[[], None]):
        """
        Args:
            where: HOST:PORT of host 0, which need not listen yet.
            silence: seconds without an answer of that machine after which it is gone.
            lost: called in a thread where host 0, or the network, has ended a connection; when it
                returns JAX is told.
        """
        host, _, port = where.rpartition(":")
        self._where, self._silence, self._lost = (host.strip("[]"), int(port)), silence, lost
        # A file and no port: it is for its user alone, and no proxy is asked for the way. Its name
        # may have about a hundred letters, and a job's own folder of temporary files has more.
        self._folder = Path(tempfile.mkdtemp(prefix="ic_jax-", dir="/tmp"))
        self.address = f"unix:{self._folder / 'host-0'}"
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(self._folder / "host-0"))
        self._server.listen()
        Thread(target=self._serve, daemon=True).start()

    def joined(self) -> None:
        """JAX has its connection; there will be no other."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _serve(self) -> None:
        while True:
            near, _ = self._server.accept()
            Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        try:
            far = socket.create_connection(self._where, self._silence)
        except OSError:  # not there yet: JAX tries again
            near.close()
            return
        far.settimeout(None)
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
            limit = int(1000 * self._silence)
            far.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, limit)
        closed_here = Event()

        def send() -> None:
            if _pass_on(near, far):
                closed_here.set()
            with suppress(OSError):
                far.shutdown(socket.SHUT_RDWR)

        Thread(target=send, daemon=True).start()
        _pass_on(far, near)
        if not closed_here.is_set():
            self._lost()
        with suppress(OSError):
            near.shutdown(socket.SHUT_RDWR)  # closing alone tells nobody while `send` reads it
        near.close()


def _pass_on(source: socket.socket, sink: socket.socket) -> bool:
    """Until one of them ends; whether the source was closed."""
    with suppress(OSError):
        while data := source.recv(1 << 18):
            sink.sendall(data)
        return True
    return False
