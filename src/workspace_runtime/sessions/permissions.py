"""Permissions as data: from what an agent asks to what a client sees, and from an answer to what the agent is told."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from workspace_runtime.errors import WorkspaceError

from .drivers.base import Decision, PermissionAnswer, PermissionAsked, PermissionOption, Question, Scope
from .model import JsonObject, Permission

By = Literal["client", "timeout", "interrupt", "turn_ended", "agent", "server_restarted"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client sent, parsed: an option, or a decision in its own words."""

    option_id: str | None = None
    decision: Decision | None = None
    scope: Scope | None = None
    updated_input: JsonObject | None = None
    message: str | None = None
    answers: Mapping[str, Sequence[str] | str] | None = None
    interrupt: bool = False


def ask(asked: PermissionAsked, *, id: str, session_id: str, turn_id: str | None, created_at: str) -> Permission:
    """A new pending permission."""
    return Permission(
        id=id,
        session_id=session_id,
        turn_id=turn_id,
        request=asked.request,
        kind=asked.kind,
        tool=asked.tool,
        input=asked.input,
        created_at=created_at,
        title=asked.title,
        tool_use_id=asked.tool_use_id,
        parent_tool_use_id=asked.parent_tool_use_id,
        plan=asked.plan,
        questions=asked.questions,
        options=asked.options,
    )


def decide(permission: Permission, answer: Answer) -> tuple[PermissionAnswer, PermissionOption | None]:
    """What the agent is told, and the option that was taken, where one fits.

    Raises `WorkspaceError("permission_answer_invalid")` for an answer that does not fit this permission.
    """
    decision, scope = answer.decision, answer.scope
    option = None
    if answer.option_id is not None:
        option = next((option for option in permission.options if option.id == answer.option_id), None)
        if option is None:
            raise _invalid(f"There is no option {answer.option_id!r} here.", permission)
        if decision not in (None, option.decision) or scope not in (None, option.scope):
            raise _invalid(
                f"The option {option.id!r} is {option.decision} {option.scope}, the body says otherwise.", permission
            )
        decision, scope = option.decision, option.scope
    if decision is None and answer.answers is not None:
        decision = "allow"
    if decision is None:
        raise _invalid("Name an option_id, or a decision: allow or deny.", permission)
    scope = scope or "once"
    if option is None:
        option = next((o for o in permission.options if (o.decision, o.scope) == (decision, scope)), None)
        if option is None and scope != "once":
            raise _invalid(f"{decision} with the scope {scope} is not offered for this.", permission)
    if answer.interrupt and decision != "deny":
        raise _invalid("interrupt goes with deny.", permission)
    if answer.updated_input is not None and (decision != "allow" or permission.kind != "tool"):
        raise _invalid("updated_input goes with allowing a tool.", permission)
    answers = None
    if permission.kind == "question" and decision == "allow":
        answers = _answers(permission, answer.answers)
    elif answer.answers is not None:
        raise _invalid("answers goes with answering a question.", permission)
    told = PermissionAnswer(
        decision=decision,
        scope=scope,
        updated_input=answer.updated_input,
        message=answer.message,
        answers=answers,
        interrupt=answer.interrupt,
    )
    return told, option


def _answers(
    permission: Permission, answers: Mapping[str, Sequence[str] | str] | None
) -> Mapping[str, Sequence[str] | str]:
    known = {question.id: question for question in permission.questions}
    for name in answers or {}:
        if name not in known:
            raise _invalid(f"There is no question {name!r} here.", permission)
    if not answers or set(answers) != set(known):
        missing = ", ".join(sorted(set(known) - set(answers or {})))
        raise _invalid(f"Answer every question: {missing} is missing.", permission)
    for name, value in answers.items():
        _check_labels(known[name], value, permission)
    return answers


def _check_labels(question: Question, value: Sequence[str] | str, permission: Permission) -> None:
    if isinstance(value, str):  # free text answers any question
        if not value.strip():
            raise _invalid(f"The answer to {question.id!r} is empty.", permission)
        return
    labels = {option.label for option in question.options}
    unknown = [label for label in value if label not in labels]
    if unknown:
        raise _invalid(f"{unknown[0]!r} is no option of {question.id!r}: send other answers as a string.", permission)
    if not value or (len(value) > 1 and not question.multi_select):
        raise _invalid(
            f"{question.id!r} takes {'one or more labels' if question.multi_select else 'one label'}.", permission
        )


def _invalid(detail: str, permission: Permission) -> WorkspaceError:
    options = [{"id": o.id, "decision": o.decision, "scope": o.scope} for o in permission.options]
    return WorkspaceError("permission_answer_invalid", detail, options=options)


def already(permission_id: str, resolution: JsonObject | None) -> WorkspaceError:
    """The refusal of a second answer."""
    return WorkspaceError("permission_resolved", f"{permission_id} is already answered.", resolution=resolution)
