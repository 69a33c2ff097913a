"""What Claude Code does beside its turns: commands and sub-agents in the background, and timers. Pure.

The CLI tells of each task when it starts (`task_started`), how it ends (`task_updated`), and after each change which of them are in the
background now (`background_tasks_changed`). Timers it keeps as quietly as a crontab: they are known by the tools that set them.
"""

from typing import Literal

from .base import AgentEvent, BackgroundChanged, BackgroundTask, JsonObject

_KINDS: dict[str, Literal["command", "sub_agent"]] = {"local_bash": "command", "local_agent": "sub_agent"}
_ENDS: dict[str, Literal["completed", "failed", "stopped"]] = {"completed": "completed", "failed": "failed"}
_WAKEUP = "wakeup"


class Background:
    """All tasks that go on; each change of them is an event."""

    def __init__(self) -> None:
        self._known: dict[str, BackgroundTask] = {}
        self._live: dict[str, BackgroundTask] = {}
        self._timers: dict[str, BackgroundTask] = {}
        self._once: dict[str, float] = {}  # by their names: when they fire
        self._ended: dict[str, Literal["completed", "failed", "stopped"]] = {}

    def told(self, message: JsonObject) -> list[AgentEvent]:
        """A message of the type `system`."""
        task_id = str(message.get("task_id"))
        match message.get("subtype"):
            case "task_started":
                self._known[task_id] = _task(message)
                if task_id in self._live:
                    self._live[task_id] = self._known[task_id]
                    return self._changed()
            case "task_updated":
                status = (message.get("patch") or {}).get("status")
                if status in ("completed", "failed", "killed"):
                    self._ended[task_id] = _ENDS.get(status, "stopped")
                    self._known.pop(task_id, None)
            case "background_tasks_changed":
                before, listed = self._live, message.get("tasks") or []
                self._live = {
                    str(told["task_id"]): self._known.get(str(told["task_id"])) or _task(told) for told in listed
                }
                # what has just begun is told with its `task_started`, which has the tool call
                if (
                    any(task_id in self._known for task_id in self._live.keys() ^ before.keys())
                    or before.keys() - self._live
                ):
                    return self._changed()
        return []

    def tool_ended(self, tool_use_id: str, tool: str, input: JsonObject, native: object) -> list[AgentEvent]:
        """A tool call that went well: it may have set a timer, or taken one back."""
        found = native if isinstance(native, dict) else {}
        match tool:
            case "CronCreate" if found.get("id"):
                name = str(found["id"])
                title = str(found.get("humanSchedule") or input.get("cron") or name)
                self._timers[name] = BackgroundTask(name, "timer", title, tool_use_id)
                if not found.get("recurring"):
                    self._once[name] = float(found.get("nextFireAt") or 0)
            case "CronDelete" if str(input.get("id")) in self._timers:
                self._end_timer(str(input.get("id")), "stopped")
            case "ScheduleWakeup" if found.get("scheduledFor"):
                self._timers[_WAKEUP] = BackgroundTask(_WAKEUP, "timer", str(input.get("reason") or tool), tool_use_id)
            case _:
                return []
        return self._changed()

    def woke(self, source: object) -> list[AgentEvent]:
        """A timer fired. One that fires once is over."""
        name = _WAKEUP if source == "loop_wakeup" else None
        if source == "schedule_wakeup" and self._once:
            name = min(self._once, key=lambda name: self._once[name])
        if name not in self._timers:
            return []
        self._end_timer(name, "completed")
        return self._changed()

    def _end_timer(self, name: str, end: Literal["completed", "stopped"]) -> None:
        del self._timers[name]
        self._once.pop(name, None)
        self._ended[name] = end

    def _changed(self) -> list[AgentEvent]:
        ended, self._ended = self._ended, {}
        return [BackgroundChanged((*self._live.values(), *self._timers.values()), ended)]


def _task(told: JsonObject) -> BackgroundTask:
    return BackgroundTask(
        id=str(told.get("task_id")),
        kind=_KINDS.get(str(told.get("task_type")), "other"),
        title=str(told.get("description") or told.get("task_type") or "task"),
        tool_use_id=told.get("tool_use_id") if isinstance(told.get("tool_use_id"), str) else None,
    )
