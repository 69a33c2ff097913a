"""Claude Code's permission requests as data: what a person is asked, and what the CLI is told."""

from typing import Any

import pytest

from workspace_runtime.sessions.drivers.base import PermissionAnswer, PermissionAsked
from workspace_runtime.sessions.drivers.claude_permissions import (
    Allow,
    Deny,
    Request,
    ask,
    notation,
    reply,
    rules,
)

CWD = "/workspace"


def request(tool: str, input: dict[str, Any], *suggestions: dict[str, Any]) -> Request:
    return Request("ask1", tool, input, tool_use_id="t1", suggestions=suggestions)


def add_rules(*contents: str, tool: str = "Bash", behavior: str = "allow") -> dict[str, Any]:
    granted = [{"toolName": tool, "ruleContent": content} for content in contents]
    return {"type": "addRules", "rules": granted, "behavior": behavior, "destination": "localSettings"}


def scopes(asked: PermissionAsked) -> list[tuple[str, str, str | None, str | None]]:
    return [(option.decision, option.scope, option.rule, option.writes_to) for option in asked.options]


MODE = {"type": "setMode", "mode": "acceptEdits", "destination": "session"}
FOLDERS = {"type": "addDirectories", "directories": ["/workspace"], "destination": "session"}
TOUCH = request("Bash", {"command": "touch a"}, add_rules("touch a"), FOLDERS, MODE)
QUESTION = request(
    "AskUserQuestion",
    {
        "questions": [
            {"question": "Which?", "header": "H", "options": [{"label": "A", "description": "a"}, {"label": "B"}]},
            {"question": "How many?", "multiSelect": True, "options": []},
        ]
    },
)


def test_a_command_is_asked_with_every_scope() -> None:
    asked = ask(TOUCH, CWD)
    assert (asked.kind, asked.title, asked.tool_use_id) == ("tool", "Bash: touch a", "t1")
    assert scopes(asked) == [
        ("allow", "once", None, None),
        ("allow", "session", "Bash(touch a)", None),
        ("allow", "always", "Bash(touch a)", ".claude/settings.local.json"),
        ("deny", "once", None, None),
    ]
    assert len({option.id for option in asked.options}) == 4


@pytest.mark.parametrize(
    ("asked", "rule"),
    [
        (request("Write", {"file_path": "/workspace/a/b.txt"}, MODE), "Edit(//workspace/**)"),
        (request("Edit", {"file_path": "a.txt"}, MODE), "Edit(//workspace/**)"),
        (request("NotebookEdit", {"notebook_path": "/workspace/n.ipynb"}), "Edit(//workspace/**)"),
        (request("Write", {"file_path": "/x/[a]*.txt"}, MODE), "Edit(//x/\\\\[a\\\\]\\\\*.txt)"),
        (request("Write", {"file_path": "/workspaces/a.txt"}, MODE), "Edit(//workspaces/a.txt)"),
        (request("Write", {"file_path": "/workspace/../etc/x"}, MODE), "Edit(//etc/x)"),
        (request("Bash", {"command": "a && b"}, add_rules("a", "b *")), "Bash(a),Bash(b *)"),
        (request("Bash", {"command": "f(1) \\"}), "Bash(f\\(1\\) \\\\)"),
        (request("Read", {"file_path": "/x/y"}, add_rules("//x/**", tool="Read")), "Read(//x/**)"),
        (request("WebFetch", {"url": "https://example.org:8/x"}), "WebFetch(domain:example.org)"),
        (request("mcp__server__tool", {}), "mcp__server__tool"),
        (request("Bash", {"command": "x"}, add_rules("y", behavior="deny")), "Bash(x)"),
    ],
)
def test_what_would_be_granted(asked: Request, rule: str) -> None:
    assert ",".join(notation(granted) for granted in rules(asked, CWD)) == rule


@pytest.mark.parametrize(
    "asked", [request("Write", {}), request("Bash", {}), request("WebFetch", {"url": "file:///x"})]
)
def test_where_no_rule_can_be_made_none_is_offered(asked: Request) -> None:
    assert [scope for _, scope, _, _ in scopes(ask(asked, CWD))] == ["once", "once"]
    assert reply(asked, PermissionAnswer("allow", scope="session"), CWD) == Allow(asked.input)


@pytest.mark.parametrize(("scope", "destination"), [("session", "session"), ("always", "localSettings")])
def test_a_lasting_answer_adds_rules_and_nothing_else(scope: Any, destination: str) -> None:
    told = reply(TOUCH, PermissionAnswer("allow", scope=scope), CWD)
    assert isinstance(told, Allow)
    granted = [{"toolName": "Bash", "ruleContent": "touch a"}]
    update = {"type": "addRules", "behavior": "allow", "destination": destination, "rules": granted}
    assert told.updates == (update,)
    whole = reply(request("mcp__a__b", {}), PermissionAnswer("allow", scope=scope), CWD)
    assert isinstance(whole, Allow) and whole.updates[0]["rules"] == [{"toolName": "mcp__a__b"}]


def test_allowed_once_as_it_is_or_edited() -> None:
    assert reply(TOUCH, PermissionAnswer("allow"), CWD) == Allow({"command": "touch a"})
    edited = PermissionAnswer("allow", updated_input={"command": "touch b"})
    assert reply(TOUCH, edited, CWD) == Allow({"command": "touch b"})


def test_denied() -> None:
    assert reply(TOUCH, PermissionAnswer("deny", message="no", interrupt=True), CWD) == Deny("no", interrupt=True)
    for asked in (TOUCH, QUESTION, request("ExitPlanMode", {})):
        told = reply(asked, PermissionAnswer("deny"), CWD)
        assert isinstance(told, Deny) and told.message and not told.interrupt


def test_questions() -> None:
    asked = ask(QUESTION, CWD)
    assert asked.kind == "question" and [q.id for q in asked.questions] == ["q1", "q2"]
    assert [(o.label, o.description) for o in asked.questions[0].options] == [("A", "a"), ("B", None)]
    assert [option.id for option in asked.options] == ["allow_once", "deny"]
    told = reply(QUESTION, PermissionAnswer("allow", answers={"q1": "my own", "q2": ["x", "y"]}), CWD)
    assert isinstance(told, Allow)
    assert told.input["answers"] == {"Which?": "my own", "How many?": "x, y"}
    assert told.input["questions"] == QUESTION.input["questions"]


@pytest.mark.parametrize("input", [{}, {"questions": None}, {"questions": [None, {}]}, {"questions": [{"options": 1}]}])
def test_odd_questions_are_asked_all_the_same(input: dict[str, Any]) -> None:
    assert ask(request("AskUserQuestion", input), CWD).kind == "question"


def test_plans() -> None:
    assert ask(request("ExitPlanMode", {"plan": "told"}), CWD, plan="known").plan == "told"
    assert ask(request("ExitPlanMode", {}), CWD, plan="known").plan == "known"
    assert ask(TOUCH, CWD, plan="known").plan is None
