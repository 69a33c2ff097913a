"""The server process: bind, serve, drain, exit."""

import asyncio
import contextlib
import errno
import gc
import logging
import os
import socket
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import uvicorn

from .app import MAX_FRAME_BYTES, Application, create_app
from .config import Config
from .errors import ConfigError
from .security.connection import http_protocol
from .sessions.drivers import claude
from .state import StateFolder
from .streams.socket import SocketProtocol

logger = logging.getLogger(__name__)

# A client that does not answer a ping for so long is gone. Long enough for one that is slow to take a large replay.
PING_INTERVAL_S = 20.0
PING_TIMEOUT_S = 60.0
# What still runs so long after the drain is cut off.
GRACEFUL_S = 3


class Server(uvicorn.Server):
    """uvicorn's server, with a drain before it closes its connections, so that clients get the last events."""

    def __init__(self, config: uvicorn.Config, drain: Callable[[], Awaitable[None]]) -> None:
        super().__init__(config)
        self._drain = drain

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, then close."""
        try:
            await self._drain()
        finally:
            await super().shutdown(sockets)
            # a signal that ended the server as it should is no failure: uvicorn would raise it again
            self._captured_signals.clear()


def bind(config: Config) -> list[socket.socket]:
    """The listening sockets: for `localhost` one on 127.0.0.1 and, where there is IPv6, one on ::1 with the same port.

    Raises `ConfigError` when the port or the address can't be had.
    """
    if config.host == "localhost":
        first = _listen(socket.AF_INET, "127.0.0.1", config.port)
        sockets = [first]
        try:
            sockets.append(_listen(socket.AF_INET6, "::1", first.getsockname()[1]))
        except ConfigError as fault:
            if isinstance(fault.__cause__, OSError) and fault.__cause__.errno == errno.EADDRINUSE:
                first.close()
                raise
        return sockets
    host = config.host.strip("[]")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, config.port, type=socket.SOCK_STREAM)[0]
    except OSError as fault:
        raise ConfigError(f"The host {config.host} can't be resolved ({fault.strerror}). Name an address.") from fault
    return [_listen(family, str(address[0]), config.port)]


def _listen(family: int, host: str, port: int) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((host, port))
        listener.listen(2048)
        listener.setblocking(False)
    except OSError as fault:
        listener.close()
        if fault.errno == errno.EADDRINUSE:
            detail = f"Port {port} is in use. Stop what uses it, or name another with --port (0 takes a free one)."
        elif fault.errno in (errno.EACCES, errno.EPERM):
            detail = f"Port {port} may not be used by this user. Name one above 1023 with --port."
        else:
            detail = f"{host} port {port} can't be listened on ({fault.strerror}). Name another --host or --port."
        raise ConfigError(detail) from fault
    return listener


def url_of(config: Config, sockets: list[socket.socket]) -> str:
    """Where a client on this machine reaches the server."""
    port = sockets[0].getsockname()[1]
    host = "localhost" if config.host in ("localhost", "0.0.0.0", "::", "[::]") else config.host  # noqa: S104
    return f"http://{host}:{port}{config.root_path}"


@contextlib.asynccontextmanager
async def running(config: Config, sockets: list[socket.socket]) -> AsyncIterator[tuple[Application, Server, str]]:
    """The parts of a server for as long as the context is open: the application, the server to `serve` with, its URL.

    Raises `ConfigError` when the state can't be used. Closes the sockets.
    """
    try:
        async with create_app(config) as application:
            url = url_of(config, sockets)
            StateFolder(config.state).announce(url)
            _preload_later()
            yield application, Server(uvicorn_config(config, application), application.drain), url
    finally:
        for listener in sockets:
            listener.close()


def uvicorn_config(config: Config, application: Application) -> uvicorn.Config:
    """uvicorn's settings for an application of ours."""
    return uvicorn.Config(
        application.entry,
        http=http_protocol(config),
        ws=SocketProtocol,
        loop="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        ws_max_size=MAX_FRAME_BYTES,
        ws_per_message_deflate=False,
        ws_ping_interval=PING_INTERVAL_S,
        ws_ping_timeout=PING_TIMEOUT_S,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=GRACEFUL_S,
    )


def _preload_later() -> None:
    """Import the agents' libraries in a thread, soon after the server stands: they take half a second.

    All that is there then stays as long as the server: the garbage collector need not look at it, a tenth of a second each time.
    """
    loop = asyncio.get_running_loop()

    def preload() -> None:
        loop.run_in_executor(None, claude.preload).add_done_callback(lambda _: gc.freeze())

    loop.call_later(0.3, preload)


async def serve(config: Config, started: Callable[[str], None]) -> None:
    """Serve until a signal ends it. `started` is called with the URL once requests are taken."""
    sockets = bind(config)
    async with running(config, sockets) as (_, server, url):
        started(url)
        await server.serve(sockets)


def configure_logging(level: str) -> None:
    """Log to standard error, with the time; uvicorn's own words only from a warning on (they name query strings)."""
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", force=True)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    # of patterns in a workspace's .gitignore, which mean the same to git
    warnings.filterwarnings("ignore", message="Possible .* at position", category=FutureWarning)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of each bad upload, in the client's words


def forget_own_environment() -> None:
    """Take our own settings out of the environment that agents inherit: the token above all."""
    for name in [name for name in os.environ if name.startswith("WORKSPACE_") or name == "TOKEN_FILE"]:
        del os.environ[name]


def run_loop(main: Callable[[], Any]) -> None:
    """Run an asynchronous main function on uvloop."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
