"""The server process: bind, serve, drain, exit."""

import asyncio
import contextlib
import errno
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from types import FrameType
from typing import Any, NoReturn

import uvicorn

from . import __version__, logs
from .app import MAX_FRAME_BYTES, Application, create_app
from .config import Config, own_variables
from .errors import ConfigError
from .keeper import server_keeper
from .logs import told
from .memory import give_large_blocks_back
from .security.connection import http_protocol
from .sessions.drivers import claude
from .state import Announcement, StateFolder
from .streams.socket import SocketProtocol

logger = logging.getLogger(__name__)

# A client that does not answer a ping for so long is gone. Long enough for one that is slow to take a large replay.
PING_INTERVAL_S = 20.0
PING_TIMEOUT_S = 60.0
# After the drain: how long clients may take what they were sent; how long the rest has to notice that its client is cut off;
# how long what still runs then (a thread that waits for a disk) is waited for before its task is cancelled.
LAST_BYTES_S = 0.25
CUT_S = 0.25
GRACEFUL_S = 1
# A stop that has not ended by then never will: a thread hangs in the kernel. What has to be durable is so long before.
STOP_LIMIT_S = 20.0
# How often a temporary server looks whether its last client has left.
LEFT_S = 0.1


class Server(uvicorn.Server):
    """uvicorn's server, with a drain before it closes its connections, so that clients get the last events.

    `withdraw` is called as soon as it is told to end: from then on nobody shall come to it.
    """

    def __init__(
        self, config: uvicorn.Config, drain: Callable[[], Awaitable[None]], withdraw: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(config)
        self._drain = drain
        self._withdraw = withdraw
        self.bounded = False  # whether this process ends with the server, and so may be ended if that hangs
        self.on_started: Callable[[], None] = lambda: None  # called once requests are taken, and signals heard

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Take requests."""
        await super().startup(sockets)
        self.on_started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal ends it."""
        self._withdraw()
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, then close. Nobody can keep the server from it: whoever does not take its last bytes is cut off."""
        if self.bounded:
            limit = threading.Timer(STOP_LIMIT_S, _give_up)
            limit.daemon = True
            limit.start()
        began = time.monotonic()
        reason = (
            ", ".join(dict.fromkeys(signal.Signals(number).name for number in self._captured_signals)) or "asked to"
        )
        logger.info("server stops", extra=told(reason=reason, connections=len(self.server_state.connections)))
        for listening in self.servers:
            listening.close()
        try:
            await self._drain()
        finally:
            await self._let_go()
            for listener in sockets or ():
                listener.close()
            # a signal that ended the server as it should is no failure: uvicorn would raise it again
            self._captured_signals.clear()
            logger.info("server stopped", extra=told(took_s=round(time.monotonic() - began, 3)))

    async def _let_go(self) -> None:
        """End all connections: with their last bytes, or else as if the client had gone, which everything here is made for.

        Instead of uvicorn's way, which waits for the slowest client, then cancels what serves it.
        """
        for connection in list(self.server_state.connections):
            connection.shutdown()
        await self._gone_within(LAST_BYTES_S)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await self._gone_within(CUT_S)
        for task in list(self.server_state.tasks):
            task.cancel()
        await self._gone_within(GRACEFUL_S)

    async def _gone_within(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        state = self.server_state
        while (state.connections or state.tasks) and loop.time() < end and not self.force_exit:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)


def _give_up() -> NoReturn:
    logger.error("the stop takes longer than %.0f s: something hangs, and is left", STOP_LIMIT_S)
    end_process(1)


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
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.host.strip("[]"), config.host.strip("[]"))  # noqa: S104
    return f"http://{f'[{host}]' if ':' in host else host}:{port}{config.root_path}"


@contextlib.asynccontextmanager
async def running(
    config: Config, sockets: list[socket.socket], *, temporary: bool = False
) -> AsyncIterator[tuple[Application, Server, str]]:
    """The parts of a server for as long as the context is open: the application, the server to `serve` with, its URL.

    Raises `ConfigError` when the state can't be used. Closes the sockets.
    """
    try:
        async with create_app(config) as application:
            url = url_of(config, sockets)
            state = StateFolder(config.state)
            told = Announcement(
                url=url,
                pid=os.getpid(),
                keeper=server_keeper() or os.getpid(),
                root=str(config.root),
                token_file=_token_file(config),
                temporary=temporary,
            )
            state.announce(told, config.token)
            _preload_later()
            yield application, Server(uvicorn_config(config, application), application.drain, state.withdraw), url
    finally:
        for listener in sockets:
            listener.close()


def _token_file(config: Config) -> str | None:
    """The file that the token is in, None where it came by another way."""
    if config.token_file is None:
        return None
    with contextlib.suppress(OSError, ValueError):
        if config.token_file.read_text().strip() == config.token:
            return str(config.token_file.absolute())
    return None


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
    )


def _preload_later() -> None:
    """Import the agents' libraries in a thread, soon after the server stands: they take half a second, and a stop does not wait for it.

    All that is there then stays as long as the server: the garbage collector need not look at it, a tenth of a second each time.
    """

    def preload() -> None:
        claude.preload()
        gc.freeze()

    thread = threading.Thread(target=preload, name="preload", daemon=True)
    asyncio.get_running_loop().call_later(0.3, thread.start)


async def serve(config: Config, started: Callable[[str], None], *, temporary: bool = False) -> None:
    """Serve until a signal ends it, or, if it is `temporary`, until its last client has left.

    `started` is called with the URL once requests are taken.
    """
    sockets = bind(config)
    async with (
        running(config, sockets, temporary=temporary) as (application, server, url),
        asyncio.TaskGroup() as tasks,
    ):

        def tell() -> None:
            started(url)
            logger.info(
                "server started", extra=told(version=__version__, root=str(config.root), url=url, pid=os.getpid())
            )
            if not application.health.ready:
                logger.error(
                    "started degraded: the state folder takes no writes. Sessions wait for that; files can be deleted."
                )

        server.bounded = True
        server.on_started = tell
        leaving = tasks.create_task(_end_unused(StateFolder(config.state), server)) if temporary else None
        await server.serve(sockets)
        if leaving is not None:
            leaving.cancel()


async def _end_unused(state: StateFolder, server: Server) -> None:
    """End a temporary server once no command uses it and nobody is connected. No other client can come from then on."""
    while True:
        closed = state.without_clients()
        if closed is not None and not server.server_state.connections:
            break  # held until this process has ended
        if closed is not None:
            os.close(closed)
        await asyncio.sleep(LEFT_S)
    state.withdraw()
    server.should_exit = True


def end_process(status: int) -> NoReturn:
    """End this process, whose work is done and durable, at once: a thread that is in the middle of something must not hold it up."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def configure_logging(level: str, form: str = "text") -> None:
    """Log to standard error, see `logs`; uvicorn's own words only from a warning on (they name query strings)."""
    logs.configure(level, form)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    # of an answer that has begun and can't be finished: whoever cuts it says why
    logging.getLogger("uvicorn.error").addFilter(lambda record: "without completing response" not in record.msg)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    # of patterns in a workspace's .gitignore, which mean the same to git
    warnings.filterwarnings("ignore", message="Possible .* at position", category=FutureWarning)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of each bad upload, in the client's words


def forget_own_environment() -> None:
    """Take our own settings out of the environment that agents inherit: the token above all."""
    for name in own_variables(os.environ):
        del os.environ[name]


def run_loop(main: Callable[[], Any]) -> None:
    """Run an asynchronous main function on uvloop."""
    import uvloop

    give_large_blocks_back()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
