"""HTTP server that stops gracefully: what is drawn is finished and sent."""

import os
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from ic_jax import cli
from infer.engine import Engine


class Server(uvicorn.Server):
    """uvicorn with the engine's end: `run` returns after SIGTERM or Ctrl-C, when all is answered.

    A second signal ends the process at once.
    """

    def __init__(self, app: ASGIApp, engine: Engine, host: str, port: int):
        """Prepare to listen on a port; 0 is any that is free."""
        self._engine = engine
        settings: dict[str, Any] = {"log_level": "warning", "access_log": False}
        super().__init__(uvicorn.Config(app, host, port, server_header=False, **settings))

    @property
    def url(self) -> str:
        """Address of the server that listens."""
        host, port, *_ = self.servers[0].sockets[0].getsockname()
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Begin to stop on a signal."""
        if self.should_exit:
            os._exit(cli.INTERRUPTED)
        self.should_exit = True
        # A handler may interrupt a print, so it does not use the same buffer.
        os.write(2, b"\nfinishing what is drawn; a second time ends the server at once\n")

    async def startup(self, sockets: Any = None) -> None:
        """Listen, and say where."""
        await super().startup(sockets)
        if self.started:
            cli.say(f"serving at {self.url}/v1 until SIGTERM or Ctrl-C")

    async def shutdown(self, sockets: Any = None) -> None:
        """Refuse what waits, and answer the rest."""
        self._engine.refuse()
        await super().shutdown(sockets)
