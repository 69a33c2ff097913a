"""`workspace-runtime run`: one turn in the terminal, through the API like every other client."""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Iterator
from typing import Any, TextIO

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from ..errors import ConfigError
from .asking import ask
from .client import Client, inside
from .keyboard import Keyboard
from .screen import Output, Screen
from .text import printable, printable_json

JsonObject = dict[str, Any]

INTERRUPTED = 130
NOBODY = "Nobody is at the keyboard to allow this."
# How long the command waits for its session to end: the server takes 10 s at most, and whoever pressed Ctrl-C twice waits less.
_END_S = 15.0
_HURRY_S = 3.0


class Turn:
    """Creates a session, shows its first turn, and answers what it asks from the keyboard."""

    def __init__(self, client: Client, as_json: bool, out: TextIO) -> None:
        self._client = client
        self._json = as_json
        self._out = Output(out)
        self._screen = Screen(self._out)
        self._keyboard: Keyboard | None = None
        self._agent = self._root = self._cwd = ""
        self._waiting: dict[str, JsonObject] = {}  # permissions that nobody has answered, in the order they came
        self._asked: str | None = None
        self._asking: asyncio.Task[None] | None = None
        self._held: list[JsonObject] = []  # what came while a question stood on the terminal
        self._denied = 0
        self._stopping = False

    async def run(self, agent: str, prompt: str, cwd: str) -> int:
        """Returns 0 when the turn ended well, 1 when it failed or something could not be asked, 130 when it was interrupted.

        Raises `OutputError`, and `ConfigError` for all that the server is asked and does not do.
        """
        self._agent = agent
        self._screen.tell(f"Starting {printable(agent)} … (Ctrl-C stops it)")
        session = await self._create({"agent": agent, "prompt": prompt} | ({"cwd": cwd} if cwd else {}))
        patience = _HURRY_S
        try:
            _, about = await self._client.request("GET", "/api/v1")
            self._root, self._cwd = str(about["workspace"]["root"]), str(session["cwd"])
            code = await self._watch(session["id"])
            patience = _END_S
            return code
        finally:
            await self._terminate(session["id"], patience)

    async def _create(self, body: JsonObject) -> JsonObject:
        """A new session. Who leaves while it is made leaves none behind."""
        creating = asyncio.ensure_future(self._client.request("POST", "/api/v1/agent-sessions", body))
        try:
            status, session = await asyncio.shield(creating)
        except asyncio.CancelledError:
            with contextlib.suppress(ConfigError, TimeoutError):
                status, session = await asyncio.wait_for(creating, _HURRY_S)
                if status == 201:
                    await self._terminate(session["id"], _HURRY_S)
            raise
        if status != 201:
            raise ConfigError(_refusal(status, session))
        return session

    async def _terminate(self, session_id: str, patience: float) -> None:
        with contextlib.suppress(ConfigError):
            await self._client.request("DELETE", f"/api/v1/agent-sessions/{session_id}", timeout=patience)

    async def _watch(self, session_id: str) -> int:
        try:
            async with self._client.events(session_id) as socket:
                with self._interrupts(socket):
                    return await self._follow(socket)
        except (OSError, InvalidHandshake, ConnectionClosed) as fault:
            raise ConfigError(
                f"The connection to the server was lost ({printable(str(fault))}). The session is {session_id}."
            ) from None
        finally:
            await self._stop_asking()
            if self._keyboard is not None:
                self._keyboard.close()

    @contextlib.contextmanager
    def _interrupts(self, socket: ClientConnection) -> Iterator[None]:
        """Ctrl-C stops the turn; a second one ends the command."""
        loop, command = asyncio.get_running_loop(), asyncio.current_task()
        assert command is not None

        def interrupt() -> None:
            if self._stopping:
                command.cancel()
                return
            self._stopping = True
            self._take_off()
            self._screen.tell("Interrupting … (Ctrl-C again ends the command)")
            task = loop.create_task(socket.send(json.dumps({"type": "interrupt"})))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())

        loop.add_signal_handler(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGINT)
            signal.signal(signal.SIGINT, signal.default_int_handler)

    async def _follow(self, socket: ClientConnection) -> int:
        async for frame in socket:
            text = frame if isinstance(frame, str) else frame.decode()
            event = json.loads(text)
            if self._json and "seq" in event and event["type"] != "ready":
                self._out.write(printable_json(text) + "\n")
            match event["type"]:
                case "permission_request":
                    self._waiting[event["permission_id"]] = event
                    self._ask_next(socket)
                case "permission_resolved":
                    await self._resolved(socket, event)
                case "rejected":
                    await self._rejected(socket, event)
                case "done":
                    await self._stop_asking()
                    return self._end(event["stop_reason"])
                case "error" if event["code"] == "agent_auth_required":
                    self._show(event)
                    await self._tell_sign_in()
                case _ if self._asking is not None:
                    self._held.append(event)
                case _:
                    self._show(event)
        return 1

    def _show(self, event: JsonObject) -> None:
        if not self._json:
            self._screen.show(event)
        elif event["type"] == "error":
            self._screen.tell(
                f"error ({printable(event['code'])}): {printable(event['error'], lines=True, prose=True)}"
            )

    async def _tell_sign_in(self) -> None:
        """How to sign in on the server's machine."""
        _, agents = await self._client.request("GET", "/api/v1/agents")
        for agent in agents["items"]:
            if agent["id"] == self._agent:
                self._screen.tell(printable(agent["sign_in"]))

    def _end(self, reason: str) -> int:
        self._screen.end_line()
        self._screen.show_end(reason)
        if self._denied and reason == "end_turn":
            self._screen.tell(
                f"{self._denied} of the agent's requests {'was' if self._denied == 1 else 'were'} denied, since nobody was at the keyboard. "
                "Run this in a terminal to be asked."
            )
        return INTERRUPTED if reason == "interrupted" else 0 if reason == "end_turn" and not self._denied else 1

    # --- what the agent asks ------------------------------------------------------------------------------------------

    def _ask_next(self, socket: ClientConnection) -> None:
        """Put the first permission that waits on the terminal, unless one stands there."""
        if self._asking is None and self._waiting and not self._stopping:
            self._asked = next(iter(self._waiting))
            self._asking = asyncio.get_running_loop().create_task(self._ask(socket, self._waiting[self._asked]))

    async def _ask(self, socket: ClientConnection, event: JsonObject) -> None:
        permission = event["permission_id"]
        self._keyboard = self._keyboard or Keyboard.open()
        if self._keyboard is None:
            self._denied += 1
            self._screen.tell(f"Denied: {printable(event['title'] or event['tool'])}. {NOBODY}")
            answer: JsonObject = {"decision": "deny", "message": NOBODY}
        else:
            self._screen.end_line()
            try:
                answer = await ask(self._keyboard, await self._whole(event), self._read)
            except Exception as fault:  # the edge of the task: what can't be shown can't be allowed
                self._screen.tell(f"Denied, since it can't be shown: {printable(repr(fault))}")
                answer = {"decision": "deny", "message": "It could not be shown to the user."}
        frame = {"type": "permission", "permission_id": permission, "request_id": permission, **answer}
        with contextlib.suppress(ConnectionClosed):  # `_follow` tells
            await socket.send(json.dumps(frame))

    async def _whole(self, event: JsonObject) -> JsonObject:
        """The event with all that the frame's limit cut off: nobody shall allow what they can't see."""
        if not event.get("truncated"):
            return event
        status, whole = await self._client.request("GET", event["href"])
        if status != 200:
            raise ConfigError(_refusal(status, whole))
        return whole

    def _read(self, path: str) -> str | None:
        relative = inside(self._root, self._cwd, path)
        with contextlib.suppress(ConfigError):
            return None if relative is None else self._client.text_of(relative)
        return None

    async def _resolved(self, socket: ClientConnection, event: JsonObject) -> None:
        """A permission has its answer: ours, or one that came from elsewhere while we asked."""
        permission = event["permission_id"]
        self._waiting.pop(permission, None)
        if permission == self._asked:
            elsewhere = self._asking is not None and not self._asking.done() and not self._stopping
            await self._stop_asking()
            if elsewhere:
                how = "allowed" if event["decision"] == "allow" else "denied"
                by = {"client": "by another client", "timeout": "since its time was up"}.get(
                    event["by"], "by the agent's end"
                )
                self._screen.tell(f"Answered already: {how} {by}.")
        self._ask_next(socket)

    async def _rejected(self, socket: ClientConnection, event: JsonObject) -> None:
        """An answer of ours was not taken: it came too late, or does not fit."""
        permission = event.get("request_id")
        if permission is None:  # of the interrupt: nothing runs any more
            return
        if permission == self._asked:
            await self._stop_asking()
        self._screen.tell(f"Your answer was not taken: {printable(event['error'])}")
        if event["code"] in ("permission_resolved", "permission_not_found"):
            self._waiting.pop(permission, None)
        self._ask_next(socket)

    def _take_off(self) -> None:
        """Take the question off the terminal, where one stands there."""
        if self._asking is not None and not self._asking.done():
            self._asking.cancel()
            if self._keyboard is not None:
                self._keyboard.say("\n")

    async def _stop_asking(self) -> None:
        """Take the question off, and show what came meanwhile."""
        if not self._stopping:
            self._take_off()
        asking, self._asking, self._asked = self._asking, None, None
        if asking is not None:
            asking.cancel()
            await asyncio.wait((asking,))
        held, self._held = self._held, []
        for event in held:
            self._show(event)


def _refusal(status: int, problem: JsonObject) -> str:
    """What the server refused, as a sentence; with a way out where it wants a token."""
    detail = printable(str(problem.get("detail") or problem or f"The server answered {status}."))
    if status == 401:
        return f"{detail} Give the server's token: --token-file FILE, or WORKSPACE_TOKEN."
    return detail


def folder_below(root: str, folder: str) -> str:
    """`folder` relative to `root`, "" for the root itself. Raises `ValueError` where it lies elsewhere."""
    relative = os.path.relpath(folder, root)
    if relative == ".." or relative.startswith("../"):
        raise ValueError(folder)
    return "" if relative == "." else relative
