"""Claude Code's permission requests and answers, as data. Pure: no I/O, and nothing of the SDK.

Rules are in Claude Code's own notation: `Tool`, or `Tool(content)` with parentheses in the content escaped. The CLI suggests
*updates* with each request. They are not taken whole: for a command they would also add folders and change the mode, for a
file they would only change the mode. What is offered instead is a rule and nothing else: in memory for the session, or written
by the CLI itself into the workspace's local settings.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .base import JsonObject, PermissionAnswer, PermissionAsked, PermissionOption, Question, QuestionOption
from .claude_tools import EDIT_TOOLS, title

LOCAL_SETTINGS = ".claude/settings.local.json"
DENIED = "The user does not want this to be done. Ask them how to go on, or find another way."
DECLINED = "The user declined to answer."
PLAN_REJECTED = "The user does not accept this plan. Stay in plan mode and improve it."

Rule = tuple[str, str | None]


@dataclass(frozen=True, slots=True)
class Request:
    """One `can_use_tool` request of the CLI. `suggestions` are its updates as they are on the wire, `agent_id` is the CLI's id
    of the sub-agent that asks."""

    id: str
    tool: str
    input: JsonObject
    tool_use_id: str | None = None
    agent_id: str | None = None
    parent_tool_use_id: str | None = None
    suggestions: Sequence[JsonObject] = ()
    title: str | None = None


@dataclass(frozen=True, slots=True)
class Allow:
    """Let the tool run, with this input, and apply these updates (as on the wire)."""

    input: JsonObject
    updates: Sequence[JsonObject] = field(default=())


@dataclass(frozen=True, slots=True)
class Deny:
    """Don't; `interrupt` also ends the turn."""

    message: str
    interrupt: bool = False


def ask(
    request: Request, cwd: str, *, plan: str | None = None, local_settings: str = LOCAL_SETTINGS
) -> PermissionAsked:
    """What a person is asked. `cwd` is the session's working directory, `plan` what the model gave to the tool itself,
    `local_settings` the file in which the CLI keeps rules for always."""
    kind = {"AskUserQuestion": "question", "ExitPlanMode": "plan"}.get(request.tool, "tool")
    options = [PermissionOption("allow_once", "allow", "once", _ALLOW_LABELS[kind])]
    if kind == "tool":
        options += _lasting(request, cwd, local_settings)
    options.append(PermissionOption("deny", "deny", "once", _DENY_LABELS[kind]))
    return PermissionAsked(
        request=request.id,
        kind=kind,  # type: ignore[arg-type]  # one of the three, by the table above
        tool=request.tool,
        input=request.input,
        title=request.title or title(request.tool, request.input, cwd),
        tool_use_id=request.tool_use_id,
        parent_tool_use_id=request.parent_tool_use_id,
        plan=(request.input.get("plan") or plan) if kind == "plan" else None,
        questions=questions(request.input) if kind == "question" else (),
        options=options,
    )


_ALLOW_LABELS = {"tool": "Allow once", "question": "Answer", "plan": "Accept the plan"}
_DENY_LABELS = {"tool": "Deny", "question": "Decline to answer", "plan": "Keep planning"}


def _lasting(request: Request, cwd: str, local_settings: str) -> list[PermissionOption]:
    granted = rules(request, cwd)
    if not granted:
        return []
    rule = ",".join(notation(rule) for rule in granted)
    what = f"edits in {os.path.basename(cwd) or cwd}" if granted == (_edits_in(cwd),) else rule
    return [
        PermissionOption("allow_session", "allow", "session", f"Allow {what} for this session", rule=rule),
        PermissionOption(
            "allow_always", "allow", "always", f"Always allow {what}", rule=rule, writes_to=local_settings
        ),
    ]


def questions(input: JsonObject) -> tuple[Question, ...]:
    """The questions of an AskUserQuestion; ids are `q1`, `q2`, … in their order."""
    found = []
    for number, asked in enumerate(_objects(input.get("questions")), 1):
        options = tuple(
            QuestionOption(str(option.get("label", "")), option.get("description"))
            for option in _objects(asked.get("options"))
        )
        found.append(
            Question(
                id=f"q{number}",
                question=str(asked.get("question", "")),
                header=asked.get("header"),
                multi_select=bool(asked.get("multiSelect")),
                options=options,
            )
        )
    return tuple(found)


def reply(request: Request, answer: PermissionAnswer, cwd: str) -> Allow | Deny:
    """What the CLI is told."""
    if answer.decision == "deny":
        default = {"AskUserQuestion": DECLINED, "ExitPlanMode": PLAN_REJECTED}.get(request.tool, DENIED)
        return Deny(answer.message or default, answer.interrupt)
    if request.tool == "AskUserQuestion":
        return Allow({**request.input, "answers": _answers(request, answer.answers or {})})
    input = request.input if answer.updated_input is None else answer.updated_input
    if answer.scope == "once":
        return Allow(input)
    destination = "session" if answer.scope == "session" else "localSettings"
    granted = rules(request, cwd)
    update = {
        "type": "addRules",
        "behavior": "allow",
        "destination": destination,
        "rules": [
            {"toolName": tool} if content is None else {"toolName": tool, "ruleContent": content}
            for tool, content in granted
        ],
    }
    return Allow(input, (update,) if granted else ())


def _answers(request: Request, answers: Mapping[str, Sequence[str] | str]) -> dict[str, str]:
    """By the question's text, as the CLI wants them; several labels are joined by commas."""
    found = {}
    for question in questions(request.input):
        given = answers.get(question.id, "")
        found[question.question] = given if isinstance(given, str) else ", ".join(given)
    return found


# --- rules --------------------------------------------------------------------------------------------------------------


def rules(request: Request, cwd: str) -> tuple[Rule, ...]:
    """The rules that would allow this call and its like: the CLI's own suggestion, else one that is no wider than needed.

    Edits of files in the working directory are one rule for all of them (what the CLI's edit mode would allow), a file outside
    is one for that file. Paths are absolute: what a relative one means depends on the file that holds the rule.
    """
    if request.tool in EDIT_TOOLS:
        path = request.input.get("file_path") or request.input.get("notebook_path")
        if not isinstance(path, str):
            return ()
        path = os.path.normpath(os.path.join(cwd, path))
        inside = path.startswith(cwd.rstrip("/") + "/")
        return (_edits_in(cwd) if inside else ("Edit", f"/{_literal(path)}"),)
    suggested = tuple(
        (str(rule["toolName"]), rule.get("ruleContent") or None)
        for update in request.suggestions
        if update.get("type") == "addRules" and update.get("behavior") == "allow"
        for rule in _objects(update.get("rules"))
        if rule.get("toolName")
    )
    if suggested:
        return suggested
    if request.tool == "Bash":
        command = request.input.get("command")
        return (("Bash", command),) if isinstance(command, str) and command.strip() else ()
    if request.tool == "WebFetch":
        host = re.match(r"https?://([^/:?#]+)", str(request.input.get("url", "")))
        return (("WebFetch", f"domain:{host[1]}"),) if host else ()
    return ((request.tool, None),)


def _edits_in(folder: str) -> Rule:
    return "Edit", f"/{_literal(folder.rstrip('/'))}/**"


def _literal(path: str) -> str:
    """A path in the pattern language of rules (that of .gitignore)."""
    return re.sub(r"([*?\[\]!\\])", r"\\\1", path)


def notation(rule: Rule) -> str:
    """A rule as Claude Code's settings write it."""
    tool, content = rule
    if content is None:
        return tool
    escaped = content.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)")
    return f"{tool}({escaped})"


def _objects(value: object) -> list[JsonObject]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
