"""Where a session's parts meet, with the real Claude Code: nothing runs after a stop, and nothing is lost on the way."""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from support.claude_home import ClaudeHome
from support.claude_world import SESSIONS, World
from support.model_script import recall, script, text, tool, wait
from support.model_server import ModelServer
from support.server import ServerProcess, create, eventually, history, processes_with, session_of

pytestmark = pytest.mark.timeout(180)
FREE = {"permission_mode": "bypassPermissions"}
TOUCH = script([tool("Bash", command="touch ran-after-stop", description="x")])


def until_gate(world: World, gate: str) -> None:
    eventually(lambda: gate in world.model.reached, timeout=60)


def until_file(world: World, name: str) -> Path:
    path = world.workspace / name
    eventually(path.exists, timeout=60)
    return path


def of(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in events if event["type"] == kind]


def at_work(world: World, **body: Any) -> str:
    """A session whose agent runs a command that does not end."""
    prompt = script([tool("Bash", command="touch begun; python3 -c 'import time; time.sleep(777)'", description="x")])
    session = world.create(prompt, **FREE, **body)
    until_file(world, "begun")
    return session


@pytest.mark.parametrize("queue", ["keep", "drop"])
def test_what_was_steered_in_does_not_run_after_a_stop(world: World, queue: str) -> None:
    session = at_work(world)
    steered = world.send(session, TOUCH, delivery="steer")
    answer = world.client.post(f"{SESSIONS}/{session}/interrupt", json={"queue": queue})
    assert answer.json()["stop_reason"] == "interrupted"
    asked = len(world.model.requests)
    kept = queue == "keep"
    assert session_of(world.client, session)["queue"] == {"length": int(kept), "paused": kept}
    done = {e["turn_id"]: e["stop_reason"] for e in of(history(world.client, session), "done")}
    assert done.get(steered["turn_id"]) == (None if kept else "cancelled")
    # the CLI is as idle as it looks: what it is asked next is all that reaches the model
    world.send(session, script([recall()], say="and now"), delivery="interrupt")
    world.idle(session, 2 if kept else 3)
    events = world.idle(session, 3)
    assert world.model.requests[asked]["messages"][-1]["content"] != TOUCH
    texts = [e["content"] for e in of(events, "text")]
    assert "and now" in texts[0]
    assert (world.workspace / "ran-after-stop").exists() is kept  # it came second, since somebody went on


def test_a_denial_that_stops_the_turn_stops_what_was_steered_in(world: World) -> None:
    session = world.create(script([tool("Bash", command="touch a", description="x")]))
    permission = world.pending(session)
    steered = world.send(session, TOUCH, delivery="steer")
    world.answer(session, permission, decision="deny", interrupt=True)
    world.idle(session)
    assert session_of(world.client, session)["queue"] == {"length": 1, "paused": True}
    events = world.idle(session)
    assert [e["stop_reason"] for e in of(events, "done")] == ["interrupted"]
    assert of(events, "queue_updated")[-1]["items"][0]["turn_id"] == steered["turn_id"]


def test_what_comes_too_late_for_its_turn_is_a_turn_of_the_user(world: World) -> None:
    session = world.create(script([text("one two", chunks=2, hold="last call")]))
    until_gate(world, "last call")
    steered = world.send(session, script([text("second")]), delivery="steer", client_message_id="m1")
    world.model.release("last call")
    events = world.idle(session, 2)
    first, second = of(events, "turn_started")
    assert (first["origin"], second["origin"]) == ("user", "user") and second["turn_id"] == steered["turn_id"]
    assert [e["turn_id"] for e in of(events, "done")] == [first["turn_id"], second["turn_id"]]
    assert [(e["turn_id"], e["content"]) for e in of(events, "text")][1] == (second["turn_id"], "second")
    assert [e["turn_id"] for e in of(events, "user_message") if e["client_message_id"] == "m1"] == [second["turn_id"]]


def test_what_was_steered_in_survives_a_kill_of_the_server(world: World) -> None:
    session = at_work(world)
    steered = world.send(session, TOUCH, delivery="steer")
    world.server.kill_server()
    world.server.start()
    with world.server.client() as client:
        found = session_of(client, session)
        assert found["queue"] == {"length": 1, "paused": True} and found["status"] == "idle"
        items = of(history(client, session), "queue_updated")[-1]["items"]
        assert items[0]["turn_id"] == steered["turn_id"]
    assert not (world.workspace / "ran-after-stop").exists()


def test_a_stopped_process_is_interrupted(world: World) -> None:
    session = at_work(world)
    for pid in processes_with(f"{world.home.home}"):
        if b"claude" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGSTOP)
    answer = world.client.post(f"{SESSIONS}/{session}/interrupt", json={})
    assert answer.json()["stop_reason"] == "interrupted"
    world.send(session, script([recall()], say="again"))
    events = world.idle(session, 2)
    assert "again" in of(events, "text")[-1]["content"]


def test_background_work_is_told_and_keeps_its_place(tmp_path: Path, model: ModelServer) -> None:
    home = ClaudeHome(tmp_path / "home", tmp_path / "workspace", model.url)
    home.config.mkdir(parents=True)
    server = ServerProcess(tmp_path, env={**home.env(), "MAX_RUNNING_AGENTS": "1"})
    home.trust(server.workspace)
    server.start()
    try:
        with server.client() as client:
            world = World(server, home, model, client)
            inner = script([wait("inner work"), text("inner result")])
            call = tool(
                "Agent", description="look", prompt=inner, subagent_type="general-purpose", run_in_background=True
            )
            session = world.create(script([call], [text("over")], [text("noticed")]), **FREE)
            until_gate(world, "inner work")
            world.idle(session)
            refused = client.post(SESSIONS, json={"agent": "claude", "prompt": script([text("b")])})
            assert (refused.status_code, refused.json()["code"]) == (429, "too_many_agents")
            assert int(refused.headers["Retry-After"]) > 0
            assert refused.json()["at_work"] == [
                {"session_id": session, "at_work": "a sub-agent in the background (look)"}
            ]
            model.release("inner work")
            events = world.idle(session, 2)
            assert [e["content"] for e in of(events, "text") if "parent_tool_use_id" not in e] == ["over", "noticed"]
            told = [(e["task"]["kind"], e["task"]["status"]) for e in of(events, "task_updated")]
            assert told == [("sub_agent", "running"), ("sub_agent", "completed")]
            other = str(create(client, agent="claude", prompt=script([text("b")]))["id"])
            world.idle(other)
    finally:
        server.stop()


def test_a_conversation_has_one_live_owner(world: World) -> None:
    first = world.create(script([text("x")], say="root"))
    world.idle(first)
    native = session_of(world.client, first)["native_session_id"]

    def resume(**body: Any) -> Any:
        return world.client.post(SESSIONS, json={"agent": "claude", **body})

    for name in (native, native.upper()):
        refused = resume(resume={"native_session_id": name})
        assert (refused.status_code, refused.json()["code"], refused.json()["session_id"]) == (
            409,
            "session_active",
            first,
        )
    assert resume(resume={"native_session_id": "root"}).status_code == 422  # the CLI would look for a title
    fork = resume(resume={"native_session_id": native}, fork=True, prompt=script([recall()], say="branch"))
    assert fork.status_code == 201 and fork.json()["parent_session_id"] == first
    assert "root" in of(world.idle(fork.json()["id"]), "text")[0]["content"]
    world.client.delete(f"{SESSIONS}/{first}")
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: resume(resume={"native_session_id": native}), range(12)))
    assert sorted(a.status_code for a in answers) == [201] + [409] * 11
    assert world.client.post(f"{SESSIONS}/{first}/reopen").status_code == 409


def test_files_reach_the_model_or_are_refused(world: World, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("TOP SECRET")
    name = 'q "x".txt'
    (world.workspace / name).write_text("the content of it")
    (world.workspace / "link").symlink_to(tmp_path / "secret.txt")
    blocks = [{"type": "text", "text": script([text("seen")])}, {"type": "file", "path": name}]
    session = world.create(blocks)
    world.idle(session)
    assert "the content of it" in json.dumps(world.model.requests[-1]["messages"])
    for path, status, code in (
        ("missing", 404, "file_not_found"), ("link", 403, "path_outside"), ("../x", 400, "path_invalid"), (".", 400, "path_invalid"),
    ):  # fmt: skip
        prompt = [{"type": "text", "text": "look"}, {"type": "file", "path": path}]
        for target, body in ((f"{SESSIONS}/{session}/messages", {}), (SESSIONS, {"agent": "claude"})):
            refused = world.client.post(target, json={"prompt": prompt, **body})
            assert (refused.status_code, refused.json()["code"]) == (status, code), path
    assert "TOP SECRET" not in json.dumps([request["messages"] for request in world.model.requests])


@pytest.mark.long
def test_compacting_says_nothing_old_again(world: World) -> None:
    session = world.create(script([text("one")]))
    for number, prompt in enumerate(["/cost", script([text("two")]), "/context", "/compact"], 2):
        world.idle(session, number - 1)
        world.send(session, prompt)
    events = world.idle(session, 5)
    last = of(events, "turn_started")[-1]["turn_id"]
    assert [e["type"] for e in events if e["turn_id"] == last and e["type"] in ("text", "compaction", "done")] == [
        "compaction", "done",
    ]  # fmt: skip
    (told,) = of(events, "compaction")
    assert told["trigger"] == "manual" and told["before_tokens"] > 0 and told["after_tokens"] > 0


@pytest.mark.long
def test_rules_for_always_stand_where_the_question_said_or_it_is_told(world: World) -> None:
    git = ["git", "-c", "user.name=T", "-c", "user.email=t@example.org"]
    for command in (
        [*git, "init", "-q", "main"], [*git, "-C", "main", "commit", "-q", "--allow-empty", "-m", "1"],
        [*git, "-C", "main", "worktree", "add", "-q", "../tree"],
    ):  # fmt: skip
        subprocess.run(command, cwd=world.workspace, check=True, env=world.server.env)
    settings = world.workspace / "main" / ".claude" / "settings.local.json"
    rule = allow_always(world, "a0")
    eventually(lambda: rule in json.loads(settings.read_text())["permissions"]["allow"])
    settings.write_text('{"permissions": ')
    allow_always(world, "a1")
    eventually(lambda: of(history(world.client, world.sessions[-1]), "notice"))
    (notice,) = of(history(world.client, world.sessions[-1]), "notice")
    assert notice["code"] == "rule_not_saved" and str(settings) in notice["message"]


def allow_always(world: World, name: str) -> str:
    """Allow a command for always, in the linked working tree; the rule."""
    session = world.create(script([tool("Bash", command=f"touch {name}", description="x")]), cwd="tree")
    permission = world.pending(session)
    (always,) = [o for o in permission["options"] if o["scope"] == "always"]
    assert always["writes_to"] == "main/.claude/settings.local.json"
    world.answer(session, permission, option_id=always["id"])
    world.idle(session)
    return str(always["rule"])


@pytest.mark.long
def test_a_sessions_env_wins_over_settings(world: World) -> None:
    (world.home.config / "settings.json").write_text(json.dumps({"env": {"WHO": "settings", "OTHER": "kept"}}))
    session = world.create(
        script([tool("Bash", command='echo "$WHO $OTHER" > told', description="x")], [text("ok")]),
        **FREE,
        env={"WHO": "session"},
    )
    world.idle(session)
    assert (world.workspace / "told").read_text() == "session kept\n"
    world.client.delete(f"{SESSIONS}/{session}")
    assert not list(world.server.state.rglob("settings-*.json"))


@pytest.mark.long
def test_a_conversation_that_is_gone_is_gone_on_from_anew(world: World) -> None:
    session = world.create(script([text("one")], say="first words"))
    world.idle(session)
    native = session_of(world.client, session)["native_session_id"]
    world.client.delete(f"{SESSIONS}/{session}")
    (transcript,) = world.home.config.glob(f"projects/*/{native}.jsonl")
    transcript.unlink()
    assert world.client.post(f"{SESSIONS}/{session}/reopen").status_code == 200
    world.send(session, "go on")
    events = world.idle(session, 2)
    assert "next prompt begins a new conversation" in of(events, "error")[0]["error"]
    world.send(session, script([recall()], say="new words"))
    events = world.idle(session, 3)
    assert of(events, "text")[-1]["content"] == "new words"
    assert of(events, "text")[0]["content"] == "one"
    assert session_of(world.client, session)["native_session_id"] not in (None, native)


MCP_SERVER = """
import json, sys
for line in sys.stdin:
    told = json.loads(line)
    if "id" not in told:
        continue
    match told["method"]:
        case "initialize":
            result = {"protocolVersion": told["params"]["protocolVersion"], "capabilities": {"tools": {}},
                      "serverInfo": {"name": "big", "version": "1"}}
        case "tools/list":
            result = {"tools": [{"name": "much", "description": "x", "inputSchema": {"type": "object"}}]}
        case "tools/call":
            result = {"content": [{"type": "text", "text": "word " * 640_000}]}
        case _:
            result = {}
    print(json.dumps({"jsonrpc": "2.0", "id": told["id"], "result": result}), flush=True)
"""


@pytest.mark.long
def test_a_large_result_of_an_mcp_server_comes_whole(world: World) -> None:
    (world.workspace / "server.py").write_text(MCP_SERVER)
    servers = {"big": {"command": sys.executable, "args": ["server.py"]}}
    (world.workspace / ".mcp.json").write_text(json.dumps({"mcpServers": servers}))
    session = world.create(script([tool("mcp__big__much")], [text("ok")]), **FREE)
    events = world.idle(session)
    (result,) = of(events, "tool_result")
    assert result["status"] == "completed" and result["truncated"] and result["size"] >= 3_200_000
    whole = world.client.get(f"{SESSIONS}/{session}/blobs/{result['blob_id']}")
    assert whole.text == "word " * 640_000
