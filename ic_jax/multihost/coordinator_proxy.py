"""Proxy between JAX's client and process 0, which detects that process 0 has died.

JAX's client keeps a connection to the coordination service in process 0, and aborts this process
with a stack trace as soon as that breaks. JAX offers a C++ callback for this, but its argument (an
absl::Status) has no Python binding, so that a Python callback aborts the process too. We therefore
give the client a local socket, pass everything on, and detect the disconnection ourselves.
"""

import shutil
import socket
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread


class CoordinatorProxy:
    """Forwards connections from `address`, a local socket, to process 0."""

    def __init__(self, coordinator: str, timeout: float, on_disconnect: Callable[[], None]):
        """Start to listen.

        Args:
            coordinator: HOST:PORT of process 0, which need not listen yet.
            timeout: seconds without an acknowledgement from that machine until it counts as dead.
            on_disconnect: called in a thread when process 0 or the network has closed a
                connection; JAX learns of it when this returns.
        """
        host, _, port = coordinator.rpartition(":")
        self._coordinator, self._timeout = (host.strip("[]"), int(port)), timeout
        self._on_disconnect = on_disconnect
        # A Unix socket, not a port: only this user can open it, and HTTP proxies do not apply. Its
        # path is limited to about 100 characters, which a job's own TMPDIR may exceed.
        self._folder = Path(tempfile.mkdtemp(prefix="ic_jax-", dir="/tmp"))
        self.address = f"unix:{self._folder / 'process-0'}"
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(self._folder / "process-0"))
        self._server.listen()
        Thread(target=self._serve, daemon=True).start()

    def remove_socket(self) -> None:
        """Remove the socket's file, once JAX is connected: it opens no further connection."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _serve(self) -> None:
        while True:
            near, _ = self._server.accept()
            Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        try:
            far = socket.create_connection(self._coordinator, self._timeout)
        except OSError:  # not there yet: JAX tries again
            near.close()
            return
        far.settimeout(None)
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
            milliseconds = int(1000 * self._timeout)
            far.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        closed_here = Event()

        def send() -> None:
            if _forward(near, far):
                closed_here.set()
            with suppress(OSError):
                far.shutdown(socket.SHUT_RDWR)

        Thread(target=send, daemon=True).start()
        _forward(far, near)
        if not closed_here.is_set():
            self._on_disconnect()
        with suppress(OSError):
            near.shutdown(socket.SHUT_RDWR)  # close() alone does not wake `send`, which reads it
        near.close()


def _forward(source: socket.socket, sink: socket.socket) -> bool:
    """Forward bytes until either socket ends; return whether the source was closed."""
    with suppress(OSError):
        while data := source.recv(1 << 18):
            sink.sendall(data)
        return True
    return False
