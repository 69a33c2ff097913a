"""`POST` of a Claude session to its `idle`, against the SDK's own `connect()` of the same CLI with the same options.

Both take turns, the SDK imported in both. The model is a scripted one on loopback; no prompt is sent.
"""

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import median, report

from support.claude_home import ClaudeHome
from support.model_server import threaded
from support.server import ServerProcess, create, receive

ROUNDS = 9


async def connect(home: ClaudeHome, cwd: Path) -> float:
    """Seconds of the SDK's connect()."""
    from claude_agent_sdk import ClaudeAgentOptions, ClaudeSDKClient

    async def ask(tool: str, input: dict[str, Any], context: Any) -> Any:
        raise AssertionError("nothing is asked here")

    options = ClaudeAgentOptions(
        cwd=str(cwd),
        env=home.env(),
        system_prompt={"type": "preset", "preset": "claude_code"},
        setting_sources=["user", "project", "local"],
        include_partial_messages=True,
        can_use_tool=ask,
    )
    client = ClaudeSDKClient(options)
    started = time.perf_counter()
    await client.connect()
    took = time.perf_counter() - started
    await client.disconnect()
    return took


def post_to_idle(server: ServerProcess) -> float:
    """Seconds from the POST to the `idle` on a WebSocket."""
    with server.client() as client:
        client.get("/health")
        started = time.perf_counter()
        session = create(client, agent="claude")
        with server.socket(session["id"], "?events=status") as socket:
            frames = receive(socket, lambda f: f.get("status") in ("idle", "failed"))
        took = time.perf_counter() - started
        assert frames[-1]["status"] == "idle", json.dumps(frames)
        client.delete(f"/api/v1/agent-sessions/{session['id']}")
    return took


def main() -> int:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, threaded() as model:
        home = ClaudeHome(Path(folder, "home"), Path(folder, "workspace"), model.url)
        home.config.mkdir(parents=True)
        server = ServerProcess(Path(folder), env=home.env())
        home.trust(server.workspace)
        server.start()
        try:
            time.sleep(3)  # the server has imported the SDK by now
            asyncio.run(connect(home, server.workspace))
            post_to_idle(server)
            own, ours = [], []
            for _ in range(ROUNDS):
                own.append(asyncio.run(connect(home, server.workspace)))
                ours.append(post_to_idle(server))
        finally:
            server.stop()
    print(
        f"      the SDK's connect {median(own) * 1000:.0f} ms, POST to idle {median(ours) * 1000:.0f} ms (medians of {ROUNDS})"
    )
    return 0 if report("POST to idle, over the SDK's own connect", (median(ours) - median(own)) * 1000, "ms", 20) else 1


if __name__ == "__main__":
    sys.exit(main())
