"""`run`: one turn in a terminal. What is asked is seen whole, answered from the keyboard or elsewhere, and left by Ctrl-C."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest

from support.server import ServerProcess, running
from support.terminal import COMMAND, Terminal, environment, terminal


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with running(tmp_path_factory.mktemp("server")) as process:
        yield process


def command(server: ServerProcess, prompt: str, *more: str) -> list[str]:
    place = ["--workspace", str(server.workspace), "--state-path", str(server.state)]
    return [*COMMAND, "run", *place, "--agent", "demo", *more, prompt]


def run_in_terminal(server: ServerProcess, prompt: str, *more: str) -> AbstractContextManager[Terminal]:
    return terminal(command(server, prompt, *more), cwd=server.folder, env=environment(server.folder / "home"))


def run(server: ServerProcess, prompt: str, *more: str) -> "subprocess.CompletedProcess[str]":
    """Without a terminal."""
    env = environment(server.folder / "home")
    return subprocess.run(
        command(server, prompt, *more), cwd=server.folder, env=env, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=50, start_new_session=True,
    )  # fmt: skip


def pending(client: httpx.Client) -> list[dict[str, str]]:
    return list(client.get("/api/v1/permissions?status=pending").json()["items"])


# --- leaving ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["run ls", "question Which? | A | B", "propose A plan"])
def test_ctrl_c_leaves_a_question(server: ServerProcess, client: httpx.Client, script: str) -> None:
    with run_in_terminal(server, script) as person:
        person.until("number")
        person.type("\x03")
        person.until("Interrupting")
        assert person.end() == 130 and "Interrupted." in person.text and "Traceback" not in person.text
    assert pending(client) == []


def test_a_second_ctrl_c_ends_the_command(server: ServerProcess) -> None:
    with run_in_terminal(server, "say Begun\ncrash STOP") as person:  # hears no interrupt
        person.until("Begun")
        person.type("\x03")
        person.until("Interrupting")
        person.type("\x03")
        assert person.end() == 130 and "Traceback" not in person.text


def test_the_end_of_the_input_denies(server: ServerProcess) -> None:
    with run_in_terminal(server, "run ls") as person:
        person.until("number:")
        person.type("\x04")
        assert person.end() == 0 and "The keyboard was closed" in person.text


@pytest.mark.parametrize("more", [[], ["--json"]])
@pytest.mark.parametrize(
    ("output", "status", "words"),
    [
        ("| head -1", 1, ""),
        (">/dev/full", 1, "standard output can't be written: No space left on device"),
        (">&-", 2, "standard output is closed"),
    ],
)
def test_output_that_nobody_takes(
    server: ServerProcess, client: httpx.Client, output: str, status: int, words: str, more: list[str]
) -> None:
    script = f'set -o pipefail; "$@" {output}'
    prompt = "pace 0\nrepeat 3000 say hello world"
    result = subprocess.run(
        ["bash", "-c", script, "bash", *command(server, prompt, *more)],
        env=environment(server.folder / "home"), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=50,
    )  # fmt: skip
    told = result.stderr.replace("Starting demo … (Ctrl-C stops it)\n", "")
    assert result.returncode == status and words in told and len(told.splitlines()) <= 1, result.stderr
    assert "lost" not in told
    live = client.get("/api/v1/agent-sessions?limit=100").json()["items"]
    assert {session["status"] for session in live} <= {"terminated"}


# --- asking -------------------------------------------------------------------------------------------------------------


def test_a_piped_prompt_is_asked_for_on_the_terminal(server: ServerProcess, tmp_path: Path) -> None:
    piped = ["sh", "-c", 'echo "write piped.txt x" | "$@" >"$OUT" 2>&1', "sh", *command(server, "-")]
    out = tmp_path / "out"
    with terminal(piped, cwd=server.folder, env=environment(server.folder / "home", OUT=str(out))) as person:
        person.until("number:")
        person.type("1\n")
        assert person.end() == 0, person.text
    assert (server.workspace / "piped.txt").exists()
    assert "number:" not in out.read_text(), "a question belongs to the terminal, wherever the output goes"


@pytest.mark.parametrize(
    "script",
    [
        "read evil.txt",
        "say {}",
        "think {}",
        "ask {}",
        "run echo {}",
        "write {} {}",
        "question {} | {} | B",
        "propose {}",
        "plan {} | [x] {}",
        "sub-agent {}\n  say {}",
        "read {}",
    ],
)
@pytest.mark.parametrize("option", [[], ["--json"]], ids=["text", "json"])
def test_nothing_of_an_agent_works_the_terminal(server: ServerProcess, script: str, option: list[str]) -> None:
    evil = "harmless\x1b[8m\x1b]0;PWNED\x07\x9b2J\u202e hidden"
    (server.workspace / "evil.txt").write_text(evil)
    with run_in_terminal(server, script.replace("{}", evil), *option) as person:
        if script.split()[0] in ("ask", "run", "write", "question", "propose"):
            person.until("number")
            person.type("1\n")
        person.end()
    assert not set("\x1b\x07\x9b\u202e") & set(person.text), ascii(person.text)
    if script.split()[0] not in ("sub-agent",):
        assert ("\\u001b[8m" if option else "\\x1b[8m") in person.text


def test_errors_of_the_server_work_nothing_either(server: ServerProcess) -> None:
    result = run(server, "x", "--agent", "nobody\x1b]0;PWNED\x07")
    assert result.returncode == 2 and "no agent" in result.stderr and not set("\x1b\x07") & set(result.stderr)


def test_what_is_to_be_allowed_is_seen_to_its_end(server: ServerProcess) -> None:
    with run_in_terminal(server, f"run echo {'a' * 2000}; touch TAIL") as person:
        person.until("│ command: echo a")
        person.until("touch TAIL")
        person.until("number:")
        person.type("4\n")
        assert person.end() == 0 and "NOT SHOWN" not in person.text


def test_what_is_very_long_is_cut_with_a_word_and_a_key(server: ServerProcess) -> None:
    with run_in_terminal(server, f"run echo {'a' * 90_000}; touch TAIL") as person:
        person.until("NOT SHOWN: 8")
        person.until("or m for all of it: ")
        person.type("m\n")
        person.until("touch TAIL")
        person.type("4\n")
        assert person.end() == 0


def test_what_the_frame_has_no_room_for_is_fetched(server: ServerProcess) -> None:
    """Half a megabyte: more than an event may have."""
    script = server.workspace / "script"
    script.write_text(f"write long.txt {'a' * 700_000}TAIL")
    piped = ["sh", "-c", '"$@" <"$SCRIPT"', "sh", *command(server, "-")]
    with terminal(piped, cwd=server.folder, env=environment(server.folder / "home", SCRIPT=str(script))) as person:
        person.until("or m for all of it: ")
        person.type("m\n")
        person.until("TAIL")
        person.type("4\n")
        assert person.end() == 0


def test_a_write_is_shown_as_a_diff(server: ServerProcess) -> None:
    (server.workspace / "kept.txt").write_text("one\ntwo\n")
    with run_in_terminal(server, "write kept.txt one\\n2") as person:
        person.until("number:")
        person.type("4\n")
        person.end()
    assert "│ -two" in person.text and "│ kept.txt" in person.text


def test_an_answer_given_elsewhere_takes_the_question_off(server: ServerProcess, client: httpx.Client) -> None:
    with run_in_terminal(server, "write elsewhere.txt x\nsay Going on") as person:
        person.until("number:")
        (asked,) = pending(client)
        path = f"/api/v1/agent-sessions/{asked['session_id']}/permissions/{asked['id']}"
        assert client.post(path, json={"decision": "allow"}).status_code == 200
        person.until("Answered already: allowed by another client")
        assert person.end() == 0 and "Going on" in person.text
    assert (server.workspace / "elsewhere.txt").exists()


def test_an_answer_that_comes_too_late_is_told(server: ServerProcess, client: httpx.Client) -> None:
    with run_in_terminal(server, "ask Shall I?\nwait 0.2") as person:
        person.until("number:")
        os.kill(person.pid, signal.SIGSTOP)
        (asked,) = pending(client)
        path = f"/api/v1/agent-sessions/{asked['session_id']}/permissions/{asked['id']}"
        client.post(path, json={"decision": "deny"})
        person.type("1\n")
        os.kill(person.pid, signal.SIGCONT)
        assert person.end() == 0
    assert "Answered already: denied" in person.text or "Your answer was not taken" in person.text


def test_several_answers_to_one_question(server: ServerProcess) -> None:
    with run_in_terminal(server, "questions Which? | Red | Blue | Green") as person:
        person.until("own words:")
        person.type("1,9\n")  # there is no ninth
        person.until("own words:")
        person.type("1, 3\n")
        assert person.end() == 0 and "Red, Green" in person.text


def test_one_answer_to_one_question_or_own_words(server: ServerProcess) -> None:
    for typed, told in (("2\n", "Blue"), ("rather pink, 1\n", "rather pink, 1")):
        with run_in_terminal(server, "question Which? | Red | Blue") as person:
            person.until("own words:")
            person.type(typed)
            assert person.end() == 0 and f"  {told}" in person.text


def test_text_does_not_come_between_a_question_and_its_answer(server: ServerProcess, client: httpx.Client) -> None:
    with run_in_terminal(server, "ask First?\nask Second?") as person:
        for name in ("First?", "Second?"):
            person.until(f"? {name}")
            person.until("number:")
            person.type("nonsense\n")
            person.until("number:")
            person.type("1\n")
        assert person.end() == 0


# --- nobody there, and how it ended ----------------------------------------------------------------------------------------


def test_without_a_keyboard_it_says_what_was_denied(server: ServerProcess) -> None:
    result = run(server, "write never.txt x\nsay End")
    assert result.returncode == 1 and "End" in result.stdout
    assert "Denied: Write never.txt" in result.stderr and "Run this in a terminal" in result.stderr


@pytest.mark.parametrize(
    ("script", "status", "words"),
    [
        ("say a", 0, "Starting demo"),
        ("end max_tokens", 1, "limit of tokens"),
        ("end max_turns", 1, "limit of steps"),
        ("end refusal", 1, "refused"),
        ("fail", 1, "error (agent_error)"),
        ("crash", 1, "error (agent_died)"),
    ],
)
def test_each_end_is_told(server: ServerProcess, script: str, status: int, words: str) -> None:
    result = run(server, script)
    assert result.returncode == status and words in result.stderr


def test_json_is_one_object_a_line(server: ServerProcess) -> None:
    (server.workspace / "breaks.txt").write_text("a\u2028b\x85c")
    result = run(server, "read breaks.txt", "--json")
    (ended,) = [event for event in map(json.loads, result.stdout.splitlines()) if event["type"] == "tool_result"]
    assert ended["output"] == "a\u2028b\x85c"


def test_who_leaves_while_the_session_is_made_leaves_none(server: ServerProcess, client: httpx.Client) -> None:
    with run_in_terminal(server, "wait 60") as person:
        person.until("Starting demo")
        person.type("\x03")
        assert person.end() == 130
    items = client.get("/api/v1/agent-sessions?limit=1000").json()["items"]
    assert {session["status"] for session in items} <= {"terminated"}


# --- which server ----------------------------------------------------------------------------------------------------------


def test_a_server_by_its_address(server: ServerProcess, tmp_path: Path) -> None:
    env = environment(tmp_path)
    by_url = [*COMMAND, "run", "--agent", "demo", "say By address", "--url"]

    def there(url: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([*by_url, url], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=50)

    assert there(server.url).stdout == "By address\n"
    assert there("localhost:1").returncode == 2 and "must be an address" in there("localhost:1").stderr
    assert "does not answer" in there("http://127.0.0.1:1").stderr


def test_a_state_of_another_workspace_is_no_place_to_run(server: ServerProcess, tmp_path: Path) -> None:
    asked = [*COMMAND, "run", "--state-path", str(server.state), "--agent", "demo", "say x"]
    result = subprocess.run(asked, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=50)
    assert result.returncode == 2 and f"serves {server.workspace}" in result.stderr
