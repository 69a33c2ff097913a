"""Claude Code's to-do list, followed through the results of its task tools. Pure.

The CLI has two sets of tools for it: TaskCreate, TaskUpdate, TaskList (one task each), and the older TodoWrite (all at once).
"""

from collections.abc import Mapping
from typing import Literal

from .base import JsonObject, PlanChanged, PlanEntry

Status = Literal["pending", "in_progress", "completed"]
_STATUSES: Mapping[object, Status] = {"pending": "pending", "in_progress": "in_progress", "completed": "completed"}


class Plan:
    """The list as last known."""

    def __init__(self) -> None:
        self._entries: dict[str, PlanEntry] = {}

    def tool_ended(self, tool: str, input: JsonObject, native: object) -> PlanChanged | None:
        """The list after a tool ended well, if it changed. `native` is the tool's result as the CLI keeps it."""
        before = dict(self._entries)
        result = native if isinstance(native, dict) else {}
        match tool:
            case "TodoWrite":
                todos = [todo for todo in input.get("todos") or [] if isinstance(todo, dict)]
                self._entries = {
                    str(number): _entry(str(number), todo.get("content"), todo.get("status"))
                    for number, todo in enumerate(todos, 1)
                }
            case "TaskCreate":
                self._put(result.get("task"))
            case "TaskUpdate":
                self._update(input, result)
            case "TaskList" if isinstance(result.get("tasks"), list):
                self._entries = {}
                for task in result["tasks"]:
                    self._put(task)
        return PlanChanged(tuple(self._entries.values())) if self._entries != before else None

    def _put(self, task: object) -> None:
        if isinstance(task, dict) and task.get("id"):
            number = str(task["id"])
            self._entries[number] = _entry(number, task.get("subject"), task.get("status"))

    def _update(self, input: JsonObject, result: JsonObject) -> None:
        number = str(result.get("taskId") or input.get("taskId"))
        known = self._entries.get(number)
        if known is None or result.get("success") is False:
            return  # a task of before this process: the next TaskList tells of it
        status = (result.get("statusChange") or {}).get("to") or input.get("status")
        if status == "deleted":
            del self._entries[number]
            return
        self._entries[number] = _entry(number, input.get("subject") or known.content, status or known.status)


def _entry(number: str, content: object, status: object) -> PlanEntry:
    return PlanEntry(number, str(content or ""), _STATUSES.get(status, "pending"))
