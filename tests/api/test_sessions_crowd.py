"""Twelve clients at once on every route that makes or changes something of sessions: each outcome is one that a client can use."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.server import ServerProcess, create, eventually, history, session_of
from support.server import running as a_server

SESSIONS = "/api/v1/agent-sessions"
CLIENTS = 12


@pytest.fixture
def client(tmp_path: Path) -> Iterator[httpx.Client]:
    server = ServerProcess(tmp_path, env={"MAX_RUNNING_AGENTS": "3"}).start()
    with server.client() as one:
        yield one
    server.stop()


def at_once(ask: Callable[[int], httpx.Response]) -> list[httpx.Response]:
    with ThreadPoolExecutor(CLIENTS) as pool:
        return list(pool.map(ask, range(CLIENTS)))


def statuses(answers: list[httpx.Response]) -> Counter[int]:
    return Counter(answer.status_code for answer in answers)


def running(client: httpx.Client, prompt: str) -> str:
    session = str(create(client, agent="demo", prompt=prompt)["id"])
    eventually(lambda: session_of(client, session)["status"] in ("running", "requires_action"))
    return session


def done(client: httpx.Client, session: str) -> list[dict[str, Any]]:
    return [event for event in history(client, session) if event["type"] == "done"]


def test_one_key_one_session_one_prompt(client: httpx.Client) -> None:
    body = {"agent": "demo", "prompt": "say hi"}
    made = at_once(lambda _: client.post(SESSIONS, json=body, headers={"Idempotency-Key": "k"}))
    assert statuses(made) == {201: CLIENTS} and len({answer.json()["id"] for answer in made}) == 1
    session = made[0].json()["id"]
    assert len(client.get(SESSIONS).json()["items"]) == 1
    for delivery in ("queue", "steer", "interrupt"):
        message = {"prompt": f"say {delivery}", "client_message_id": delivery, "delivery": delivery}
        sent = at_once(lambda _, message=message: client.post(f"{SESSIONS}/{session}/messages", json=message))  # type: ignore[misc]
        assert statuses(sent) == {202: CLIENTS} and len({answer.text for answer in sent}) == 1
    eventually(lambda: len(done(client, session)) == 4)
    said = [event["client_message_id"] for event in history(client, session) if event["type"] == "user_message"]
    assert sorted(said) == ["interrupt", "k", "queue", "steer"]
    client.delete(f"{SESSIONS}/{session}?purge=true")
    again = client.post(SESSIONS, json=body, headers={"Idempotency-Key": "k"})
    assert again.status_code == 201 and again.json()["id"] != session


def test_many_sessions_find_a_place_one_after_the_other(client: httpx.Client) -> None:
    for _ in range(2):
        made = at_once(lambda _: client.post(SESSIONS, json={"agent": "demo"}))
        assert statuses(made) == {201: CLIENTS}
    eventually(lambda: all(item["status"] == "idle" for item in client.get(SESSIONS).json()["items"]))


def test_prompts_of_all_are_turns_in_one_order(client: httpx.Client) -> None:
    session = running(client, "run echo hi")
    (waiting,) = eventually(lambda: client.get(f"{SESSIONS}/{session}/permissions").json()["items"])
    sent = at_once(lambda n: client.post(f"{SESSIONS}/{session}/messages", json={"prompt": f"say {n}"}))
    assert statuses(sent) == {202: CLIENTS} and len({answer.json()["position"] for answer in sent}) == CLIENTS
    client.post(f"{SESSIONS}/{session}/permissions/{waiting['id']}", json={"decision": "deny"})
    eventually(lambda: len(done(client, session)) == CLIENTS + 1)
    order = [answer.json()["turn_id"] for answer in sorted(sent, key=lambda answer: answer.json()["position"])]
    assert [event["turn_id"] for event in done(client, session)][1:] == order


def test_a_permission_is_answered_once(client: httpx.Client) -> None:
    session = running(client, "run echo hi")
    (waiting,) = eventually(lambda: client.get(f"{SESSIONS}/{session}/permissions").json()["items"])
    path = f"{SESSIONS}/{session}/permissions/{waiting['id']}"
    answers = at_once(lambda n: client.post(path, json={"decision": ("allow", "deny")[n % 2]}))
    assert statuses(answers) == {200: 1, 409: CLIENTS - 1}
    (taken,) = (answer.json()["resolution"] for answer in answers if answer.status_code == 200)
    assert all(answer.json()["resolution"] == taken for answer in answers)
    resolved = [event for event in history(client, session) if event["type"] == "permission_resolved"]
    assert len(resolved) == 1 and resolved[0]["decision"] == taken["decision"]


def test_stops_and_changes_of_one_session(client: httpx.Client) -> None:
    session = running(client, "wait 60")
    client.post(f"{SESSIONS}/{session}/messages", json={"prompt": "say never"})
    stopped = at_once(lambda n: client.post(f"{SESSIONS}/{session}/interrupt", json={"queue": ("keep", "drop")[n % 2]}))
    assert set(statuses(stopped)) <= {200, 204} and statuses(stopped)[200] >= 1
    assert sorted(event["stop_reason"] for event in done(client, session)) == ["cancelled", "interrupted"]
    changed = at_once(lambda n: client.patch(f"{SESSIONS}/{session}", json={"title": f"t{n}", "labels": [f"t{n}"]}))
    assert statuses(changed) == {200: CLIENTS}
    found = session_of(client, session)
    assert found["labels"] == [found["title"]]


def test_what_is_purged_stays_away_whatever_is_asked_beside_it(tmp_path: Path) -> None:
    with a_server(tmp_path) as server, server.client() as client:
        gone = []
        for _ in range(6):
            session = create(client, agent="demo", prompt="say hi")["id"]
            eventually(lambda session=session: session_of(client, session)["status"] == "idle")  # type: ignore[misc]
            client.delete(f"{SESSIONS}/{session}")

            def ask(number: int, path: str = f"{SESSIONS}/{session}") -> httpx.Response:
                match number % 3:
                    case 0:
                        return client.delete(f"{path}?purge=true")
                    case 1:
                        return client.post(f"{path}/reopen")
                return client.patch(path, json={"title": f"t{number}", "model": "demo-fast"})

            answers = at_once(ask)
            assert set(statuses(answers)) <= {200, 204, 404, 409}
            assert sum(answer.status_code == 204 for answer in answers) == 1
            gone.append(session)
        # one that waits for another's end while it is removed
        first = create(client, agent="demo", prompt="say secret")["id"]
        eventually(lambda: session_of(client, first)["status"] == "idle")
        client.delete(f"{SESSIONS}/{first}")
        second = create(client, agent="demo", resume={"session_id": first}, prompt="say hi\ncrash STOP")["id"]
        eventually(lambda: session_of(client, second)["native_session_id"] is not None)
        with ThreadPoolExecutor(3) as pool:
            asked = [
                pool.submit(client.delete, f"{SESSIONS}/{second}"),
                pool.submit(client.post, f"{SESSIONS}/{first}/reopen"),
                pool.submit(client.delete, f"{SESSIONS}/{first}?purge=true"),
            ]
            assert {answer.result().status_code for answer in asked} <= {200, 204, 404, 409}
        gone.append(first)
    with a_server(tmp_path) as server, server.client() as client:
        left = {item["id"] for item in client.get(f"{SESSIONS}?limit=100").json()["items"]}
        assert left.isdisjoint(gone) and second in left


def test_ends_reopenings_and_prompts_of_one_session(client: httpx.Client) -> None:
    session = running(client, "wait 60")

    def ask(number: int) -> httpx.Response:
        match number % 3:
            case 0:
                return client.delete(f"{SESSIONS}/{session}")
            case 1:
                return client.post(f"{SESSIONS}/{session}/reopen")
        return client.post(f"{SESSIONS}/{session}/messages", json={"prompt": "say here"})

    for _ in range(3):
        answers = at_once(ask)
        assert set(statuses(answers)) <= {200, 202, 204, 409}
        refused = {answer.json()["code"] for answer in answers if answer.status_code == 409}
        assert refused <= {"session_terminated"}
    assert client.delete(f"{SESSIONS}/{session}").status_code == 204
    with client.stream("GET", f"{SESSIONS}/{session}/events", headers={"Accept": "text/event-stream"}) as answer:
        last = [line for line in answer.iter_lines() if line.startswith("data: ")]
    assert last  # the stream of a terminated session ends
    assert client.post(f"{SESSIONS}/{session}/reopen").json()["status"] == "idle"
    begun = [event["turn_id"] for event in history(client, session) if event["type"] == "turn_started"]
    ended = Counter(event["turn_id"] for event in done(client, session))
    assert set(begun) <= set(ended) and set(ended.values()) == {1}


def test_a_session_is_purged_once(client: httpx.Client) -> None:
    session = running(client, "wait 60")
    answers = at_once(lambda _: client.delete(f"{SESSIONS}/{session}?purge=true"))
    assert set(statuses(answers)) <= {204, 404} and statuses(answers)[204] >= 1
    assert client.get(f"{SESSIONS}/{session}").status_code == 404 and not client.get(SESSIONS).json()["items"]
