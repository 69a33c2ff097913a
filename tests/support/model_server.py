"""A scripted Messages API on loopback: the far edge of the agent, faked; all that is nearer is real.

    async with ModelServer() as server:            # in an asynchronous test
        environ["ANTHROPIC_BASE_URL"] = server.url

    with threaded() as server: …                   # from a synchronous test: the server runs in a thread

    python -m support.model_server --port 0        # as a process (in tests/); prints its address

It is stateless but for what it records: the script of the turn travels in the prompt (see `model_script`). A request without
one (a title, a summary) gets a short plain answer. `requests` holds the body of every `POST /v1/messages`, in order.
"""

import argparse
import asyncio
import contextlib
import hashlib
import itertools
import json
import re
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Any

from . import model_script
from .model_script import Item

ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    529: "overloaded_error",
}
DEFAULT_USAGE = {"input_tokens": 10, "cache_creation_input_tokens": 3, "cache_read_input_tokens": 5, "output_tokens": 4}


class _HungUp(Exception):
    """The script cuts the connection here."""


class ModelServer:
    """See the module. Safe to read from another thread; `release` too."""

    def __init__(self, port: int = 0) -> None:
        self.requests: list[dict[str, Any]] = []
        self.reached: list[str] = []
        self.stalled = 0
        self._port = port
        self._gates: dict[str, asyncio.Event] = {}
        self._attempts: Counter[str] = Counter()
        self._ids = itertools.count(1)
        self._server: asyncio.Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handlers: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """The base address, for `ANTHROPIC_BASE_URL`."""
        return f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> "ModelServer":
        self._loop = asyncio.get_running_loop()
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self._port, limit=64 << 20)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._handlers):
            task.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)

    def release(self, gate: str) -> None:
        """Let every stream that holds, or will hold, at `wait(gate)` go on."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._gate(gate).set)

    def texts(self) -> list[str]:
        """The user's texts of the newest request that carries tools (a turn of the agent, no title or summary)."""
        turns = [request for request in self.requests if request.get("tools")]
        return model_script.user_texts(turns[-1]["messages"]) if turns else []

    def _gate(self, name: str) -> asyncio.Event:
        return self._gates.setdefault(name, asyncio.Event())

    # --- HTTP ---------------------------------------------------------------------------------------------------------

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._handlers.add(task)
            task.add_done_callback(self._handlers.discard)
        try:
            while await self._exchange(reader, writer):
                pass
            writer.close()
        except _HungUp:  # what was said before the cut arrives, the end of the answer never does
            writer.close()
        except (ConnectionError, asyncio.IncompleteReadError):
            writer.transport.abort()
        except asyncio.CancelledError:  # the server ends: asyncio's own callback would report the cancellation
            writer.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; whether the connection goes on."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = head[0].split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        path = target.partition("?")[0]
        if method == "POST" and path == "/v1/messages":
            await self._messages(json.loads(body), writer, reader)
        elif method == "POST" and path == "/v1/messages/count_tokens":
            await _send_json(writer, 200, {"input_tokens": max(1, len(body) // 4)})
        else:
            await _send_json(writer, 404, _error(404, "no such route"))
        return True

    async def _messages(self, body: dict[str, Any], writer: asyncio.StreamWriter, reader: asyncio.StreamReader) -> None:
        self.requests.append(body)
        items = self._items(body)
        step = hashlib.sha256(json.dumps([items, len(body["messages"])]).encode()).hexdigest()
        attempt = self._attempts[step]
        self._attempts[step] += 1
        items = [item for item in items if attempt < item.get("times", attempt + 1)]
        for item in items:
            if "error" in item:
                await _send_json(writer, item["error"], _error(item["error"], item["message"]))
                return
        if not body.get("stream"):
            if any("drop" in item for item in items):
                raise _HungUp
            await _send_json(writer, 200, self._whole(body, items))
            return
        hung_up = asyncio.ensure_future(reader.read(1))
        try:
            if items and "stall" in items[0]:
                await self._hold(items[0], hung_up)  # not even the head of an answer
            await self._stream(body, items, writer, hung_up)
        finally:
            hung_up.cancel()
            await asyncio.gather(hung_up, return_exceptions=True)

    async def _stream(
        self, body: dict[str, Any], items: list[Item], writer: asyncio.StreamWriter, hung_up: "asyncio.Future[bytes]"
    ) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        async for event in self._events(body, items, hung_up):
            data = f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()
            writer.write(b"%x\r\n%b\r\n" % (len(data), data))
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    # --- what the model says ------------------------------------------------------------------------------------------

    def _items(self, body: dict[str, Any]) -> list[Item]:
        found = model_script.find(body["messages"]) if body.get("tools") else None
        if found is None:
            return [model_script.text("A plain answer.")]
        steps, index = found
        return steps[index] if index < len(steps) else [model_script.text("Done.")]

    def _content(self, body: dict[str, Any], item: Item) -> dict[str, Any] | None:
        """The content block of an item; None for an item that is none."""
        messages = body["messages"]
        if "think" in item:
            return {"type": "thinking", "thinking": item["think"], "signature": "c2lnbmF0dXJl"}
        if "text" in item:
            return {"type": "text", "text": item["text"] * item.get("repeat", 1)}
        if "tool" in item:
            return {
                "type": "tool_use",
                "id": f"toolu_{next(self._ids):08d}",
                "name": item["tool"],
                "input": item["input"],
            }
        if "plan_file" in item:
            found = re.search(r"[^\s\"'`(]+/plans/[^\s\"'`)]+\.md", json.dumps(body))
            input = {"file_path": found[0] if found else "/nowhere.md", "content": item["plan_file"]}
            return {"type": "tool_use", "id": f"toolu_{next(self._ids):08d}", "name": "Write", "input": input}
        if "recall" in item:
            return {"type": "text", "text": "\n".join(model_script.user_texts(messages))}
        if "images" in item:
            return {"type": "text", "text": "\n".join(model_script.sent_images(messages)) or "no images"}
        if "results" in item:
            return {"type": "text", "text": "\n".join(model_script.last_results(messages)) or "no results"}
        return None

    def _whole(self, body: dict[str, Any], items: list[Item]) -> dict[str, Any]:
        content = [block for block in (self._content(body, item) for item in items) if block is not None]
        return self._message(body, items) | {"content": content, "stop_reason": _stop_reason(items)}

    def _message(self, body: dict[str, Any], items: list[Item]) -> dict[str, Any]:
        return {
            "id": f"msg_{next(self._ids):08d}",
            "type": "message",
            "role": "assistant",
            "model": body["model"],
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(items),
        }

    async def _events(
        self, body: dict[str, Any], items: list[Item], hung_up: "asyncio.Future[bytes]"
    ) -> AsyncIterator[dict[str, Any]]:
        yield {"type": "message_start", "message": self._message(body, items) | {"usage": _usage(items, output=1)}}
        index = 0
        for item in items:
            if "drop" in item:
                raise _HungUp
            if "stall" in item or "wait" in item:
                await self._hold(item, hung_up)
                continue
            block = self._content(body, item)
            if block is None:
                continue
            events = [event async for event in _block_events(index, block, item)] if "hold" in item else []
            for event in events[: len(events) // 2]:
                yield event
            if events:
                await self._hold({"wait": item["hold"]}, hung_up)
                for event in events[len(events) // 2 :]:
                    yield event
            else:
                async for event in _block_events(index, block, item):
                    yield event
            index += 1
        reason = {"stop_reason": _stop_reason(items), "stop_sequence": None}
        yield {"type": "message_delta", "delta": reason, "usage": {"output_tokens": _usage(items)["output_tokens"]}}
        yield {"type": "message_stop"}

    async def _hold(self, item: Item, hung_up: "asyncio.Future[bytes]") -> None:
        event = asyncio.Event() if "stall" in item else self._gate(item["wait"])
        gate: asyncio.Future[bool] = asyncio.ensure_future(event.wait())
        self.stalled += "stall" in item
        if "wait" in item:
            self.reached.append(item["wait"])
        try:
            waited: list[asyncio.Future[Any]] = [gate, hung_up]
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gate.cancel()
        if hung_up.done():
            raise _HungUp


async def _block_events(index: int, block: dict[str, Any], item: Item) -> AsyncIterator[dict[str, Any]]:
    start: dict[str, Any]
    if block["type"] == "tool_use":
        start, whole = block | {"input": {}}, json.dumps(block["input"])
        kind, name = "input_json_delta", "partial_json"
    elif block["type"] == "thinking":
        start, whole = {"type": "thinking", "thinking": "", "signature": ""}, block["thinking"]
        kind, name = "thinking_delta", "thinking"
    else:
        start, whole = {"type": "text", "text": ""}, block["text"]
        kind, name = "text_delta", "text"
    yield {"type": "content_block_start", "index": index, "content_block": start}
    pieces = max(1, item.get("chunks", 1))
    size = max(1, -(-len(whole) // pieces))
    for at in range(0, len(whole), size):
        if item.get("delay_ms"):
            await asyncio.sleep(item["delay_ms"] / 1000)
        yield {"type": "content_block_delta", "index": index, "delta": {"type": kind, name: whole[at : at + size]}}
    if block["type"] == "thinking":
        signature = {"type": "signature_delta", "signature": block["signature"]}
        yield {"type": "content_block_delta", "index": index, "delta": signature}
    yield {"type": "content_block_stop", "index": index}


def _usage(items: list[Item], output: int | None = None) -> dict[str, int]:
    found = dict(DEFAULT_USAGE)
    for item in items:
        found |= item.get("usage", {})
    return found if output is None else found | {"output_tokens": output}


def _stop_reason(items: list[Item]) -> str:
    for item in items:
        if "stop" in item:
            return str(item["stop"])
    return "tool_use" if any("tool" in item or "plan_file" in item for item in items) else "end_turn"


def _error(status: int, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": ERROR_TYPES.get(status, "api_error"), "message": message}}


async def _send_json(writer: asyncio.StreamWriter, status: int, body: dict[str, Any]) -> None:
    data = json.dumps(body).encode()
    writer.write(
        b"HTTP/1.1 %d Scripted\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
        % (status, len(data), data)
    )
    await writer.drain()


@contextlib.contextmanager
def threaded() -> Iterator[ModelServer]:
    """The server in a thread of its own, for a synchronous test."""
    server = ModelServer()
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    over = asyncio.Event()

    async def serve() -> None:
        async with server:
            ready.set()
            await over.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), name="model-server")
    thread.start()
    try:
        ready.wait(10)
        yield server
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(10)
        loop.close()


async def _main() -> None:
    parser = argparse.ArgumentParser(description="A scripted Messages API on loopback.")
    parser.add_argument("--port", type=int, default=0)
    async with ModelServer(parser.parse_args().port) as server:
        print(server.url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_main())
