"""`workspace-runtime run`: one turn in the terminal, through the API like every other client."""

import asyncio
import contextlib
import http.client
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any, TextIO
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from .config import Config
from .errors import ConfigError
from .state import StateFolder

JsonObject = dict[str, Any]


def run_turn(config: Config, prompt: str, *, agent: str, as_json: bool) -> int:
    """Run one turn and show it; returns 0 when it ended well, 1 when it failed, 130 when it was interrupted."""
    from .server import configure_logging, forget_own_environment, run_loop

    if not prompt.strip():
        raise ConfigError("The prompt is empty. Say what the agent shall do, or pipe it in with -.")
    configure_logging("error" if config.log_level == "info" else config.log_level)
    forget_own_environment()
    status = 1

    async def main() -> None:
        nonlocal status
        async with _server(config) as url:
            status = await _Turn(config, url, as_json, sys.stdout).run(agent, prompt)

    run_loop(main)
    return status


@contextlib.asynccontextmanager
async def _server(config: Config) -> AsyncIterator[str]:
    """The URL of the workspace's running server, or of one for this turn alone."""
    state = StateFolder(config.state)
    told = state.server()
    if told is not None and state.in_use():
        yield told["url"]
        return
    import dataclasses

    from .server import bind, running

    own = dataclasses.replace(config, host="127.0.0.1", port=0, root_path="")
    sockets = bind(own)
    async with running(own, sockets) as (_, server, url):
        serving = asyncio.get_running_loop().create_task(server.serve(sockets))
        try:
            yield url
        finally:
            server.should_exit = True
            await serving


class _Turn:
    """Creates a session, shows its first turn, and answers what it asks from the keyboard."""

    def __init__(self, config: Config, url: str, as_json: bool, out: TextIO) -> None:
        self._token = config.token
        self._url = url
        self._json = as_json
        self._out = out
        self._shown: dict[str, int] = {}
        self._mid_line = False

    async def run(self, agent: str, prompt: str) -> int:
        status, session = await asyncio.to_thread(
            self._request, "POST", "/api/v1/agent-sessions", {"agent": agent, "prompt": prompt}
        )
        if status != 201:
            raise ConfigError(f"{session.get('detail', session)}")
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        path = f"/api/v1/ws/agent-sessions/{session['id']}?events=all"
        try:
            async with connect(
                self._url.replace("http", "ws", 1) + path, additional_headers=headers, max_size=None
            ) as socket:
                with self._interrupts(socket):
                    code = await self._follow(socket)
        except (OSError, InvalidStatus, ConnectionClosed) as fault:
            raise ConfigError(
                f"The connection to the server was lost ({fault}). The session is {session['id']}."
            ) from None
        await asyncio.to_thread(self._request, "DELETE", f"/api/v1/agent-sessions/{session['id']}", None)
        return code

    def _request(self, method: str, path: str, body: JsonObject | None) -> tuple[int, JsonObject]:
        parts = urlsplit(self._url)
        connection = http.client.HTTPConnection(parts.hostname or "localhost", parts.port or 80, timeout=60)
        headers = {"Content-Type": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        try:
            connection.request(method, parts.path + path, json.dumps(body) if body is not None else None, headers)
            answer = connection.getresponse()
            data = answer.read()
            return answer.status, json.loads(data) if data else {}
        except OSError as fault:
            raise ConfigError(f"The server at {self._url} does not answer ({fault}).") from None
        finally:
            connection.close()

    @contextlib.contextmanager
    def _interrupts(self, socket: ClientConnection) -> Any:
        """Ctrl-C stops the turn; a second one the command."""
        loop = asyncio.get_running_loop()

        def interrupt() -> None:
            loop.remove_signal_handler(signal.SIGINT)
            task = loop.create_task(socket.send(json.dumps({"type": "interrupt"})))
            task.add_done_callback(lambda done: done.exception())

        loop.add_signal_handler(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGINT)

    async def _follow(self, socket: ClientConnection) -> int:
        async for frame in socket:
            event = json.loads(frame)
            if event["type"] == "permission_request":
                if self._json:
                    self._print(frame)
                await self._ask(socket, event)
                continue
            if self._json:
                if "seq" in event and event["type"] != "ready":
                    self._print(frame)
            else:
                self._show(event)
            if event["type"] == "done":
                reason = event["stop_reason"]
                return 0 if reason == "end_turn" else 130 if reason == "interrupted" else 1
        return 1

    def _print(self, frame: str | bytes) -> None:
        print(frame if isinstance(frame, str) else frame.decode(), file=self._out, flush=True)

    def _show(self, event: JsonObject) -> None:
        kind = event["type"]
        if kind in ("text_delta", "thinking_delta"):
            self._show_text(event["id"], event["content"], kind == "thinking_delta", event["offset"])
        elif kind in ("text", "thinking"):
            self._show_text(event["id"], event["content"][self._shown.get(event["id"], 0) :], kind == "thinking")
            self._line()
        elif kind == "tool_use":
            self._line()
            self._write(f"▸ {event['title'] or event['tool'] + ' ' + json.dumps(event['input'])[:200]}\n")
        elif kind == "tool_result":
            self._line()
            lines = event["output"].splitlines()
            for line in lines[:12]:
                self._write(f"  {line[:200]}\n")
            if len(lines) > 12:
                self._write(f"  … {len(lines) - 12} more lines\n")
            if event["is_error"] and not lines:
                self._write(f"  ({event['status']})\n")
        elif kind == "plan":
            self._line()
            marks = {"completed": "x", "in_progress": "~", "pending": " "}
            for entry in event["entries"]:
                self._write(f"  [{marks[entry['status']]}] {entry['content']}\n")
        elif kind == "error":
            self._line()
            print(f"error ({event['code']}): {event['error']}", file=sys.stderr, flush=True)

    def _show_text(self, block: str, text: str, thinking: bool, offset: int = 0) -> None:
        if not text:
            return
        if thinking and block not in self._shown:
            self._line()
            self._write("(thinking) ")
        self._shown[block] = max(self._shown.get(block, 0), offset) + len(text)
        self._write(text)

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()
        self._mid_line = not text.endswith("\n")

    def _line(self) -> None:
        if self._mid_line:
            self._write("\n")

    async def _ask(self, socket: ClientConnection, event: JsonObject) -> None:
        answer: JsonObject = {"type": "permission", "permission_id": event["permission_id"]}
        terminal = _terminal()
        if terminal is None:
            answer |= {"decision": "deny", "message": "Nobody is at the keyboard to allow this."}
        else:
            self._line()
            with terminal:
                answer |= await asyncio.to_thread(_ask_person, terminal, event)
        await socket.send(json.dumps(answer))


def _terminal() -> TextIO | None:
    """The keyboard and screen, also when standard input is a pipe; None where there is none."""
    try:
        return open("/dev/tty", "r+", encoding="utf-8", errors="replace", buffering=1)
    except (OSError, ValueError):
        if sys.stdin.isatty():
            return os.fdopen(os.dup(sys.stdin.fileno()), "r", encoding="utf-8", errors="replace")
        return None


def _ask_person(terminal: TextIO, event: JsonObject) -> JsonObject:
    """Ask until the answer fits; the end of the input denies."""

    def say(text: str) -> None:
        print(text, end="", file=sys.stderr, flush=True)

    if event["kind"] == "question":
        answers: JsonObject = {}
        for question in event["questions"]:
            say(f"\n? {question['question']}\n")
            labels = [option["label"] for option in question["options"]]
            for number, option in enumerate(question["options"], 1):
                say(f"  {number}. {option['label']}  {option['description'] or ''}\n")
            say("  number, or your own words: ")
            line = terminal.readline().strip()
            if not line:
                return {"decision": "deny", "message": "The person did not answer."}
            chosen = labels[int(line) - 1] if line.isdigit() and 0 < int(line) <= len(labels) else None
            answers[question["id"]] = [chosen] if chosen is not None else line
        return {"answers": answers}
    say(f"\n? {event['title'] or event['tool']}\n")
    if event["kind"] == "plan" and event["plan"]:
        say(event["plan"] + "\n")
    else:
        say(f"  {json.dumps(event['input'], ensure_ascii=False)[:1000]}\n")
    options = event["options"]
    for number, option in enumerate(options, 1):
        say(f"  {number}. {option['label']}\n")
    while True:
        say("  number: ")
        line = terminal.readline()
        if not line:
            return {"decision": "deny", "message": "The keyboard was closed."}
        if line.strip().isdigit() and 0 < int(line) <= len(options):
            return {"option_id": options[int(line) - 1]["id"]}
