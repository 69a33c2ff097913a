"""Sessions with the real Claude Code, through a real server: what users and clients see, end to end.

Only the model is scripted, on loopback; its script travels in the prompt.
"""

import base64
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter
from websockets.exceptions import ConnectionClosed

from support.claude_world import World
from support.model_script import drop, error, images, recall, script, stall, text, think, tool, wait
from support.server import (
    eventually,
    is_done,
    processes_with,
    receive,
    session_of,
    wait_status,
)
from workspace_runtime.streams.protocol import StoredEvent

pytestmark = pytest.mark.timeout(180)
EVENT: TypeAdapter[object] = TypeAdapter(StoredEvent)
SESSIONS = "/api/v1/agent-sessions"
PICTURE = base64.b64encode(
    bytes.fromhex(
        "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8cfc0000003010100c9fe92ef"
        "0000000049454e44ae426082"
    )
).decode()


def kinds(events: list[dict[str, Any]], *only: str) -> list[str]:
    return [event["type"] for event in events if not only or event["type"] in only]


def of(events: list[dict[str, Any]], *types: str) -> list[dict[str, Any]]:
    return [event for event in events if event["type"] in types]


SIX = ("thinking", "tool_use", "tool_result", "text", "done", "error")
WRITE = tool("Write", file_path="a.txt", content="hi")
SLEEP = "python3 -c 'import time; time.sleep(777)'"


def test_a_whole_turn_watched_by_two_clients(world: World) -> None:
    session = world.create(permission_mode="acceptEdits")
    got: list[str] = []

    def watch() -> None:
        headers = {"Accept": "text/event-stream"}
        with world.client.stream("GET", f"{SESSIONS}/{session}/events?events=all", headers=headers) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    got.append(line[6:])
                    if is_done(json.loads(got[-1])):
                        return

    watcher = threading.Thread(target=watch)
    watcher.start()
    wait_status(world.client, session, "idle")
    steps = [
        [think("Let me see.", chunks=3), WRITE],
        [tool("Bash", command="echo out; cat a.txt", description="Show it")],
        [text("All is done.", chunks=4)],
    ]
    after = session_of(world.client, session)["last_seq"]
    with world.server.socket(session, f"?events=all&after={after}") as socket:
        receipt = world.send(session, script(*steps), client_message_id="m1")
        frames: list[str] = []
        while not frames or not is_done(json.loads(frames[-1])):
            frames.append(str(socket.recv(timeout=60)))
            frame = json.loads(frames[-1])
            if frame["type"] == "permission_request":
                world.answer(session, {"id": frame["permission_id"]}, decision="allow")
    watcher.join(60)
    stored = [f for f in frames if json.loads(f).get("seq") and json.loads(f)["type"] not in ("session", "ready")]
    assert [f for f in got if json.loads(f).get("seq", 0) > after] == stored
    events = [json.loads(frame) for frame in stored]
    six = kinds(events, *SIX)
    assert six == ["thinking", "tool_use", "tool_result", "tool_use", "tool_result", "text", "done"]
    write, bash = of(events, "tool_use")
    assert (write["tool"], write["kind"], bash["tool"], bash["kind"]) == ("Write", "edit", "Bash", "execute")
    results = of(events, "tool_result")
    assert all(isinstance(result["output"], str) and result["status"] == "completed" for result in results)
    assert "out\nhi" in results[1]["output"] and (world.workspace / "a.txt").read_text() == "hi"
    (message,) = of(events, "user_message")
    assert message["client_message_id"] == "m1" and message["turn_id"] == receipt["turn_id"]
    (done,) = of(events, "done")
    assert done["stop_reason"] == "end_turn" and done["usage"]["output_tokens"] > 0 and done["cost_usd"] > 0
    deltas = [json.loads(f) for f in frames if "_delta" in f]
    for block in of(events, "text", "thinking"):
        assert "".join(d["content"] for d in deltas if d["id"] == block["id"]) == block["content"]
    assert session_of(world.client, session)["native_session_id"]


def test_permissions_allowed_denied_edited(world: World) -> None:
    other = tool("Write", file_path="b.txt", content="no")
    third = tool("Write", file_path="c.txt", content="before")
    session = world.create(script([WRITE], [other], [third], [text("Fine.")]))
    world.answer(session, world.pending(session), option_id="allow_once")
    eventually(lambda: (world.workspace / "a.txt").exists())
    world.answer(session, world.pending(session), decision="deny", message="Not this one.")
    asked = eventually(lambda: (p := world.pending(session))["input"]["file_path"].endswith("c.txt") and p)
    edited = {**asked["input"], "content": "after"}
    world.answer(session, asked, decision="allow", updated_input=edited)
    events = world.idle(session)
    results = of(events, "tool_result")
    assert [result["status"] for result in results] == ["completed", "denied", "completed"]
    assert "Not this one." in results[1]["output"] and not (world.workspace / "b.txt").exists()
    assert (world.workspace / "c.txt").read_text() == "after"
    assert kinds(events).count("permission_resolved") == 3


def test_always_stands_in_the_agents_own_settings_and_holds_for_the_next_session(world: World) -> None:
    command = tool("Bash", command="touch made-by-rule", description="x")
    session = world.create(script([command], [text("ok")]))
    asked = world.pending(session)
    always = next(option for option in asked["options"] if option["scope"] == "always")
    assert always["writes_to"].endswith("settings.local.json")
    world.answer(session, asked, option_id=always["id"])
    world.idle(session)
    settings = json.loads((world.workspace / ".claude" / "settings.local.json").read_text())
    assert always["rule"] in settings["permissions"]["allow"]
    (world.workspace / "made-by-rule").unlink()
    second = world.create(script([command], [text("ok")]))
    events = world.idle(second)
    assert "permission_request" not in kinds(events) and (world.workspace / "made-by-rule").exists()


def test_a_permission_waits_while_every_client_is_gone(world: World) -> None:
    session = world.create()
    with world.server.socket(session, "?events=all") as socket:
        socket.send(json.dumps({"type": "prompt", "prompt": script([WRITE], [text("ok")])}))
        request = receive(socket, lambda f: f["type"] == "permission_request")[-1]
    asked = world.pending(session)
    assert asked["id"] == request["permission_id"] and session_of(world.client, session)["status"] == "requires_action"
    with world.server.socket(session, f"?events=all&after={request['seq']}") as socket:
        socket.send(json.dumps({"type": "permission", "permission_id": asked["id"], "decision": "allow"}))
        receive(socket, is_done)
    assert (world.workspace / "a.txt").exists()


def test_a_question_is_answered_and_a_plan_accepted(world: World) -> None:
    question = {
        "question": "Which colour?",
        "header": "Colour",
        "multiSelect": False,
        "options": [{"label": "Red", "description": "warm"}, {"label": "Blue", "description": "cold"}],
    }
    session = world.create(script([tool("AskUserQuestion", questions=[question])], [text("Thanks.")]))
    asked = world.pending(session)
    assert asked["kind"] == "question" and asked["questions"][0]["question"] == "Which colour?"
    world.answer(session, asked, answers={asked["questions"][0]["id"]: ["Blue"]})
    events = world.idle(session)
    assert "Blue" in of(events, "tool_result")[0]["output"]
    planned = world.create(
        script([tool("ExitPlanMode", plan="# First\nthis, then that")], [text("On it.")]), permission_mode="plan"
    )
    asked = world.pending(planned)
    assert asked["kind"] == "plan" and "then that" in asked["plan"]
    world.answer(planned, asked, decision="allow")
    events = world.idle(planned)
    assert of(events, "tool_result")[0]["status"] == "completed"
    assert session_of(world.client, planned)["permission_mode"] != "plan"


@pytest.mark.parametrize("where", ["text", "tool", "permission"])
def test_an_interrupt_ends_the_turn_once(world: World, where: str) -> None:
    prompts = {
        "text": script([text("one two three four ", chunks=4), wait("never-" + where)], say="x"),
        "tool": script([tool("Bash", command=SLEEP, description="x")], [text("no")]),
        "permission": script([WRITE], [text("no")]),
    }
    if where == "text":
        prompts["text"] = script([text("one two three four five six", chunks=6, hold="never-text")])
    session = world.create(prompts[where], permission_mode="default")
    if where == "tool":
        world.answer(session, world.pending(session), decision="allow")
        eventually(lambda: processes_with("time.sleep(777)"), timeout=60)
    elif where == "permission":
        world.pending(session)
    else:
        with world.server.socket(session, "?events=text_delta") as socket:
            receive(socket, lambda f: f["type"] == "text_delta")
    answer = world.client.post(f"{SESSIONS}/{session}/interrupt")
    assert answer.status_code == 200, answer.text
    events = world.idle(session)
    assert [event["stop_reason"] for event in of(events, "done")] == ["interrupted"] and not of(events, "error")
    eventually(lambda: not processes_with("time.sleep(777)"), timeout=5)
    if where == "text":
        partial = of(events, "text")[-1]
        assert partial["partial"] is True and partial["content"].startswith("one")
    world.send(session, script([recall()]))
    assert of(world.idle(session, 2), "text")[-1]["content"]


@pytest.mark.long
def test_three_prompts_queued_and_two_sessions_at_once(world: World) -> None:
    first, second = world.create(script([wait("q1"), text("first")])), world.create(script([text("other")]))
    for name in ("second", "third"):
        world.send(first, script([text(name)]))
    assert of(world.idle(second), "text")[0]["content"] == "other"
    assert session_of(world.client, first)["queue"]["length"] == 2
    world.model.release("q1")
    events = world.idle(first, 3)
    assert [event["content"] for event in of(events, "text")] == ["first", "second", "third"]
    turns = [event["turn_id"] for event in of(events, "done")]
    assert len(set(turns)) == 3 and [e["turn_id"] for e in of(events, "turn_started")] == turns


@pytest.mark.long
def test_a_sub_folder_a_sub_agent_an_image_and_a_large_result(world: World) -> None:
    (world.workspace / "sub").mkdir()
    (world.workspace / "sub" / "large.txt").write_text("0123456789abcde\n" * 330_000)
    inner = script([text("inner words")], say="Do it.")
    steps = [
        [tool("Bash", command="pwd", description="x")],
        [tool("Agent", description="helper", prompt=inner, subagent_type="general-purpose", run_in_background=False)],
        [images()],
    ]
    prompt = [{"type": "text", "text": script(*steps)}, {"type": "image", "mime_type": "image/png", "data": PICTURE}]
    world.home.trust(world.workspace / "sub")
    session = world.create(prompt, cwd="sub", permission_mode="bypassPermissions")
    events = world.idle(session)
    assert of(events, "tool_result")[0]["output"].strip() == str(world.workspace / "sub")
    call = next(event for event in of(events, "tool_use") if event["kind"] == "sub_agent")
    inside = [event for event in events if event.get("parent_tool_use_id") == call["tool_use_id"]]
    assert "inner words" in [event.get("content") for event in inside]
    assert "image/png" in of(events, "text")[-1]["content"]
    (message,) = of(events, "user_message")
    assert message["prompt"][1]["mime_type"] == "image/png" and "data" not in message["prompt"][1]


@pytest.mark.long
def test_a_tool_result_of_5_mb(world: World) -> None:
    (world.workspace / ".mcp.json").write_text(
        json.dumps({"mcpServers": {"big": {"command": "python3", "args": [str(world.workspace / "big_mcp.py")]}}})
    )
    (world.workspace / "big_mcp.py").write_text(BIG_MCP)
    (world.home.config / "settings.json").write_text(json.dumps({"enableAllProjectMcpServers": True}))
    session = world.create(
        script([tool("mcp__big__big")], [text("ok")]),
        permission_mode="bypassPermissions",
        env={"MAX_MCP_OUTPUT_TOKENS": "99999999"},
    )
    events = world.idle(session)
    (result,) = of(events, "tool_result")
    assert result["truncated"] is True and result["size"] >= 5_000_000
    whole = world.client.get(result["href"]).json()
    assert whole["output"].count("0123456789") == 500_000
    part = world.client.get(f"{SESSIONS}/{session}/blobs/{result['blob_id']}", headers={"Range": "bytes=0-9"})
    assert part.status_code == 206 and len(part.content) == 10


BIG_MCP = """
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if "id" not in message:
        continue
    method = message["method"]
    if method == "initialize":
        result = {"protocolVersion": message["params"]["protocolVersion"], "capabilities": {"tools": {}},
                  "serverInfo": {"name": "big", "version": "1"}}
    elif method == "tools/list":
        result = {"tools": [{"name": "big", "description": "big", "inputSchema": {"type": "object"},
                             "_meta": {"anthropic/maxResultSizeChars": 500000000}}]}
    elif method == "tools/call":
        result = {"content": [{"type": "text", "text": "0123456789" * 500_000}]}
    else:
        result = {}
    print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
"""


def claude_pids(world: World) -> list[int]:
    return [pid for pid in processes_with("--input-format") if f"HOME={world.home.home}\0" in environ_of(pid)]


def environ_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/environ").read_text(errors="replace")
    except OSError:
        return ""


@pytest.mark.long
def test_the_agent_killed_in_the_middle_of_a_turn(world: World) -> None:
    session = world.create(script([text("before")], say="The first thing."), permission_mode="bypassPermissions")
    world.idle(session)
    world.send(session, script([tool("Bash", command=SLEEP, description="x")]))
    eventually(lambda: processes_with("time.sleep(777)"), timeout=60)
    victim = next(pid for pid in claude_pids(world) if "keeper" not in Path(f"/proc/{pid}/cmdline").read_text())
    os.kill(victim, signal.SIGKILL)
    events = world.idle(session, 2)
    assert of(events, "error")[-1]["code"] == "agent_died" and of(events, "done")[-1]["stop_reason"] == "agent_died"
    eventually(lambda: not processes_with("time.sleep(777)"), timeout=5)
    world.send(session, script([recall()], say="And now?"))
    recalled = of(world.idle(session, 3), "text")[-1]["content"]
    assert "The first thing." in recalled and "And now?" in recalled


def test_the_server_killed_in_the_middle_of_a_turn(world: World) -> None:
    session = world.create(script([text("before")]), permission_mode="bypassPermissions")
    world.idle(session)
    frames: list[dict[str, Any]] = []
    with world.server.socket(session, "?events=all") as socket:
        world.send(session, script([text("said"), tool("Bash", command=SLEEP, description="x")]))
        frames += receive(socket, lambda f: f["type"] == "tool_use")
        eventually(lambda: processes_with("time.sleep(777)"), timeout=60)
        world.server.kill_server()
        with pytest.raises(ConnectionClosed):
            while True:
                frames.append(json.loads(socket.recv(timeout=20)))
    eventually(lambda: not processes_with("time.sleep(777)") and not claude_pids(world), timeout=5)
    last = max(f.get("seq", 0) for f in frames if f["type"] not in ("session", "ready"))
    world.server.start()
    with world.server.client() as client:
        world = World(world.server, world.home, world.model, client)
        assert session_of(client, session)["status"] == "idle"
        with world.server.socket(session, f"?events=all&after={last}") as socket:
            world.send(session, script([recall()], say="And now?"))
            later = receive(socket, lambda f: f["type"] == "text" and "And now?" in f["content"])
        events = world.idle(session, 3)
    stored = [f for f in (*frames, *later) if f.get("seq") and f["type"] not in ("session", "ready")]
    assert [f["seq"] for f in stored] == list(range(1, len(stored) + 1)) and stored == events[: len(stored)]
    assert of(events, "error")[-1]["code"] == "server_restarted"
    assert [e["stop_reason"] for e in of(events, "done")] == ["end_turn", "server_restarted", "end_turn"]
    assert "Do as the script says." in later[-1]["content"]


@pytest.mark.long
def test_the_projects_own_settings_hooks_mcp_and_memory_are_obeyed(world: World) -> None:
    folder = world.workspace / ".claude"
    folder.mkdir()
    hook = {"matcher": "Bash", "hooks": [{"type": "command", "command": "touch hook-ran"}]}
    settings = {
        "permissions": {"allow": ["Bash(echo:*)"], "deny": ["Read(./secret.txt)"]},
        "env": {"FROM_PROJECT": "yes"},
        "hooks": {"PreToolUse": [hook]},
        "enableAllProjectMcpServers": True,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    (world.home.config / "settings.json").write_text(json.dumps({"enableAllProjectMcpServers": True}))
    (world.workspace / "secret.txt").write_text("hidden")
    (world.workspace / "CLAUDE.md").write_text("Always say please-mark-4711.")
    (world.workspace / ".mcp.json").write_text(
        json.dumps({"mcpServers": {"big": {"command": "python3", "args": [str(world.workspace / "mcp.py")]}}})
    )
    (world.workspace / "mcp.py").write_text(BIG_MCP.replace("500_000", "1"))
    steps = [
        [tool("Bash", command="echo $FROM_PROJECT", description="x")],
        [tool("Read", file_path=str(world.workspace / "secret.txt"))],
        [tool("mcp__big__big")],
        [text("ok")],
    ]
    session = world.create(script(*steps))
    while (asked := eventually(lambda: next_step(world, session))) != "idle":
        assert asked["tool"] != "Read"
        world.answer(session, asked, decision="allow")
    events = world.idle(session)
    bash, read, mcp = of(events, "tool_result")
    assert "yes" in bash["output"] and (world.workspace / "hook-ran").exists()
    assert read["is_error"] and "hidden" not in read["output"]
    assert mcp["output"] == "0123456789"
    assert "please-mark-4711" in json.dumps(world.model.requests[-1]["messages"]) + json.dumps(
        world.model.requests[-1]["system"]
    )


def next_step(world: World, session: str) -> Any:
    """The permission that waits, or the word `idle`."""
    items = world.client.get(f"{SESSIONS}/{session}/permissions").json()["items"]
    return items[0] if items else session_of(world.client, session)["status"] == "idle" and "idle"


@pytest.mark.long
@pytest.mark.parametrize(
    ("step", "code", "retryable"),
    [
        ([error(401)], "agent_auth_required", False),
        ([error(429)], "agent_rate_limited", True),
        ([error(529)], "agent_overloaded", True),
        ([drop()], "agent_unreachable", True),
    ],
)
def test_failures_of_the_model_have_stable_codes(world: World, step: Any, code: str, retryable: bool) -> None:
    session = world.create(script(step))
    events = world.idle(session)
    (failed,) = of(events, "error")
    assert failed["code"] == code, failed
    assert of(events, "done")[-1]["stop_reason"] == "error" and not of(events, "text")
    assert session_of(world.client, session)["status"] == "idle"
    world.send(session, script([text("again")]))
    assert of(world.idle(session, 2), "text")[-1]["content"] == "again"


def test_not_signed_in_says_how(world: World) -> None:
    session = world.create(script([text("x")]), env={"ANTHROPIC_API_KEY": ""})
    events = world.idle(session)
    (failed,) = of(events, "error")
    assert failed["code"] == "agent_auth_required" and "demo" in failed["error"]
    assert of(events, "done")[-1]["stop_reason"] == "error" and session_of(world.client, session)["status"] == "idle"


def test_a_model_that_stalls_can_be_interrupted(world: World) -> None:
    session = world.create(script([stall()]))
    eventually(lambda: world.model.stalled)
    assert world.client.post(f"{SESSIONS}/{session}/interrupt").status_code == 200
    assert of(world.idle(session), "done")[-1]["stop_reason"] == "interrupted"
