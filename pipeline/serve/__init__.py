"""A classifier behind HTTP: a page to drop photos on, and the JSON of TensorFlow Serving's REST interface.

live.py    the model that is served, which follows ``latest``
app.py     what is answered to whom
page.py    the page

Needs the extra ``serve``: Starlette and uvicorn.
"""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
from collections.abc import Callable, Sequence

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from pipeline.errors import UserError
from pipeline.serve.app import application, one_too_many
from pipeline.serve.live import Live

__all__ = ["Live", "configuration", "listen", "run"]

CONNECTIONS = 400
"""At once; one more is refused. Each takes one of the 1,024 files that a process usually may have open."""

SECONDS_TO_ASK = 30
"""That a connection has for the whole header of a request. One that asks nothing would keep others out for as long as it likes."""

SECONDS_TO_FINISH = 60
"""How long a request may go on after the server was told to stop."""


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to an address; port 0 is any free one. Raises UserError where it cannot be had."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=CONNECTIONS)
    except (OSError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise UserError(f"port {port} of {host} is in use; choose another with --port, or stop what uses it") from None
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"cannot listen on port {port} of {host}: {reason}; choose others with --host and --port") from None


def address_of(bound: socket.socket) -> str:
    """What a person types to get there."""
    host, port = bound.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


class Connection(H11Protocol):
    """One that keeps to SECONDS_TO_ASK and CONNECTIONS. uvicorn limits only the idle time between an answer and the next byte."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            self.app = one_too_many(CONNECTIONS)
        self._patience = self.loop.call_later(SECONDS_TO_ASK, self._end_unless_it_asked)

    def connection_lost(self, exc: Exception | None) -> None:
        self._patience.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._patience.cancel()
        self._patience = self.loop.call_later(SECONDS_TO_ASK, self._end_unless_it_asked)
        super().on_response_complete()

    def _end_unless_it_asked(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.timeout_keep_alive_handler()


def configuration(live: Live, hosts: Sequence[str] = ()) -> uvicorn.Config:
    """What uvicorn is to do. ``hosts`` are names that this machine is called by, beside its own."""
    return uvicorn.Config(
        application(live, hosts),
        http=Connection,
        **{"loop": "asyncio", "ws": "none", "lifespan": "off"},  # type: ignore[arg-type]
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=SECONDS_TO_FINISH,
    )


def run(live: Live, bound: socket.socket, *, hosts: Sequence[str] = (), started: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM, then finish the requests that are being answered.

    ``hosts`` are as of ``configuration``. ``started`` is called with the address.
    """
    # uvicorn raises the signal once more when it has finished. To be told to stop is no failure of a server.
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with live.following():
            started(address_of(bound))
            uvicorn.Server(configuration(live, hosts)).run(sockets=[bound])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        bound.close()
