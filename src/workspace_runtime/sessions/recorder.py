"""The recorder: what happens in a session, as events and as the record, committed together.

It turns what the agent says, and what the actor decides, into the session's own events, and keeps what is true of the session
now: the running turn, its tools and blocks, the permissions that wait, the queue. It waits for nothing and starts nothing.
"""

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from workspace_runtime.events.log import Batch
from workspace_runtime.events.model import new_id, now

from .drivers import base
from .drivers.base import StopReason
from .journal import Journal
from .model import (
    JsonObject,
    Permission,
    QueuedPrompt,
    SessionRecord,
    Status,
    ToolRun,
    Turn,
    preview,
    prompt_text,
    usage_json,
)
from .permissions import By, ask
from .store import remove_prompt, save_permission


class Recorder:
    """The state of one session, and the one writer of its journal. `queue` holds the waiting prompts with their positions."""

    def __init__(self, record: SessionRecord, journal: Journal, queue: list[tuple[float, QueuedPrompt]]) -> None:
        self.record = record
        self.journal = journal
        self.queue = queue
        self.turn: Turn | None = None
        self.permissions: dict[str, Permission] = {}
        self._tools: dict[str, ToolRun] = {}
        self._cut_tools: set[str] = set()
        # the ids of blocks that have deltas and no event yet, by their sub-agent and the agent's name for them
        self._block_ids: dict[tuple[str | None, str], str] = {}

    def commit(self, *, waited: bool = False, state: bool = True) -> Batch:
        """Hand over what was emitted; with the record (`state`) unless the events alone tell what changed."""
        if state:
            record = self.record
            record.updated_at = now()
            record.queue_length = len(self.queue)
            record.pending_permissions = [p.id for p in self.pending]
        return self.journal.commit(state=state, waited=waited)

    @property
    def pending(self) -> list[Permission]:
        """The permissions that wait for an answer."""
        return [p for p in self.permissions.values() if p.resolution is None]

    # --- turns --------------------------------------------------------------------------------------------------------

    def open_turn(self, turn: Turn) -> None:
        """A turn begins."""
        self.turn = turn
        self.record.turn_count += 1
        self.record.active_turn = {"id": turn.id, "started_at": now(), "tool": None}
        self.journal.emit("turn_started", {"origin": turn.origin}, turn_id=turn.id)

    def say_prompt(self, prompt: QueuedPrompt, turn_id: str) -> None:
        """A prompt's turn begins, or the running one takes it in."""
        fields = {
            "prompt": self.journal.prompt_blocks(prompt.parts),
            "client_message_id": prompt.client_message_id,
            "origin": "user",
        }
        self.journal.emit("user_message", fields, turn_id=turn_id)
        self.record.last_message = {"role": "user", "text": preview(prompt_text(prompt.parts)), "at": now()}

    def end_turn(
        self, reason: StopReason, usage: base.Usage | None = None, cost: float | None = None
    ) -> list[Permission]:
        """The running turn ends: what is open in it is closed, then comes its `done`. Not committed yet.

        A turn that ends well leaves alone what sub-agents do in the background. Returns the permissions that were denied by it:
        the agent must hear of them.
        """
        turn = self.turn
        if turn is None:
            return []

        by: By = "interrupt" if reason in ("interrupted", "terminated") else "turn_ended"
        denied = self._close_open(by, all_of_it=reason != "end_turn")
        usage = usage or turn.usage
        fields = {
            "stop_reason": reason,
            "usage": usage_json(usage) if usage else None,
            "cost_usd": cost,
            "duration_ms": round((time.monotonic() - turn.started) * 1000),
        }
        self.journal.emit("done", fields, turn_id=turn.id)
        for prompt in turn.taken:
            self.done_without_turn(prompt, reason)
        self.turn = None
        self.record.active_turn = None
        self._add_usage(usage, cost)
        self.permissions = {p.id: p for p in self.pending}
        if reason == "terminated":
            self.set_status("terminated")
        elif self.record.status != "failed":
            self.set_status("idle")
        return denied

    def _close_open(self, by: By, *, all_of_it: bool) -> list[Permission]:
        """End what is open: blocks, tools, permissions; what sub-agents do in the background as well if `all_of_it`."""

        def ends(parent: str | None) -> bool:
            return parent is None or all_of_it

        for block_id, block in self.journal.open_blocks():
            if ends(block.parent_tool_use_id):
                kind = block.type.removesuffix("_delta")
                fields = {"content": block.content(), "partial": True}
                self.journal.emit(
                    kind, fields, turn_id=self.turn_id, parent=block.parent_tool_use_id, event_id=block_id
                )
                self.journal.end_block(block_id)
        still_open = {block_id for block_id, _ in self.journal.open_blocks()}
        # a name may be used again in another turn
        self._block_ids = {name: block_id for name, block_id in self._block_ids.items() if block_id in still_open}
        for tool_use_id in [name for name, tool in self._tools.items() if ends(tool.parent_tool_use_id)]:
            self._end_tool(base.ToolEnded(tool_use_id, "", "cancelled"))
            self._cut_tools.add(tool_use_id)
        denied = [p for p in self.pending if ends(p.parent_tool_use_id)]
        for permission in denied:
            self.resolve(permission, "deny", by)
        return denied

    def done_without_turn(self, turn_id: str, reason: StopReason) -> None:
        """The `done` of a prompt that had no turn of its own: another turn took it in, or it was taken back."""
        fields = {"stop_reason": reason, "usage": None, "cost_usd": None, "duration_ms": 0}
        self.journal.emit("done", fields, turn_id=turn_id)

    @property
    def at_work(self) -> str | None:
        """What goes on, in words: a turn, a permission that waits, something in the background. None where nothing does."""
        if self.turn is not None:
            return "a turn"
        if self.pending:
            return "a permission that waits"
        if self.record.background:
            kinds = {"command": "a command", "sub_agent": "a sub-agent", "timer": "a timer", "other": "a task"}
            task = self.record.background[0]
            return f"{kinds[task['kind']]} in the background ({preview(task['title'], 60)})"
        return "a tool of a sub-agent" if self._tools else None

    # --- what the agent says ------------------------------------------------------------------------------------------

    def take(self, event: base.AgentEvent) -> None:
        """One event of the agent becomes events of ours, committed. Not for `PermissionAsked` and `TurnEnded`."""
        match event:
            case base.BlockDelta():
                turn_id = self._place(event.parent_tool_use_id)
                name = event.parent_tool_use_id, event.block
                block_id = self._block_ids.get(name) or self._block_ids.setdefault(name, new_id("evt"))
                self.journal.delta(block_id, event.kind, event.text, turn_id=turn_id, parent=event.parent_tool_use_id)
                return
            case base.BlockEnded():
                self._end_block(event)
            case base.ToolCalled():
                self._call_tool(event)
            case base.ToolEnded():
                self._end_tool(event)
            case base.PermissionWithdrawn(request):
                for permission in list(self.permissions.values()):
                    if permission.request == request and permission.resolution is None:
                        self.resolve(permission, "deny", "agent")
                self.go_on()
            case base.PlanChanged(entries):
                plan = [{"id": e.id, "content": e.content, "status": e.status, "priority": e.priority} for e in entries]
                self.record.plan = plan
                self.journal.emit("plan", {"entries": plan}, turn_id=self.turn_id)
            case base.UsageChanged(usage):
                self._take_usage(usage)
            case base.SessionChanged():
                self._take_session(event)
            case base.AgentTurnStarted():
                self._place(None)
            case base.BackgroundChanged(tasks, ended):
                self._take_background(tasks, ended)
            case base.Compacted(trigger, before, after):
                fields = {"trigger": trigger, "before_tokens": before, "after_tokens": after}
                self.journal.emit("compaction", fields, turn_id=self.turn_id)
            case base.AgentNotice(code, message):
                self.journal.emit("notice", {"code": code, "message": message}, turn_id=self.turn_id)
            case base.AgentError(code, message, retryable):
                self.fail(code, message, retryable=retryable)
        text_or_tool = isinstance(event, base.BlockEnded | base.ToolCalled | base.ToolEnded | base.UsageChanged)
        self.commit(state=not text_or_tool)  # what those change of the record is found again from the events

    @property
    def turn_id(self) -> str | None:
        """The running turn's id."""
        return self.turn.id if self.turn is not None else None

    def _place(self, parent: str | None) -> str | None:
        """The id of the turn that something of the agent belongs to: the running one.

        Where none runs, the agent begins one of its own; a sub-agent in the background does not, and is outside of any.
        """
        if self.turn is None and parent is None:
            self.open_turn(Turn(new_id("turn"), "agent", sent=True))
            self.set_status("running")
            self.commit()
        return self.turn_id

    def _end_block(self, event: base.BlockEnded) -> None:
        turn_id = self._place(event.parent_tool_use_id)
        name = event.parent_tool_use_id, event.block or ""
        block_id = self._block_ids.pop(name, None) if event.block is not None else None
        fields: JsonObject = {"content": event.content}
        if event.partial:
            fields["partial"] = True
        self.journal.emit(event.kind, fields, turn_id=turn_id, parent=event.parent_tool_use_id, event_id=block_id)
        if block_id is not None:
            self.journal.end_block(block_id)
        if event.kind == "text" and event.parent_tool_use_id is None and event.content.strip():
            self.record.last_message = {"role": "assistant", "text": preview(event.content), "at": now()}

    def _call_tool(self, event: base.ToolCalled) -> None:
        turn_id = self._place(event.parent_tool_use_id)
        self._tools[event.tool_use_id] = ToolRun(event.tool, time.monotonic(), event.parent_tool_use_id)
        if self.record.active_turn is not None:
            self.record.active_turn["tool"] = event.tool
        fields = {
            "tool": event.tool,
            "input": event.input,
            "tool_use_id": event.tool_use_id,
            "kind": event.kind,
            "title": event.title,
            "locations": [{"path": place.path, "line": place.line} for place in event.locations],
        }
        self.journal.emit("tool_use", fields, turn_id=turn_id, parent=event.parent_tool_use_id)

    def _end_tool(self, event: base.ToolEnded) -> None:
        run = self._tools.pop(event.tool_use_id, None)
        if run is None and (event.tool_use_id in self._cut_tools or self.turn is None):
            return  # its turn has ended, and it with it: it has its result, and begins no turn
        if self.record.active_turn is not None:
            self.record.active_turn["tool"] = next((tool.tool for tool in reversed(self._tools.values())), None)
        fields: JsonObject = {
            "tool": run.tool if run else None,
            "tool_use_id": event.tool_use_id,
            "output": event.output,
            "is_error": event.status != "completed",
            "status": event.status,
            "duration_ms": round((time.monotonic() - run.started) * 1000) if run else None,
        }
        if event.images:
            fields["blocks"] = [self.journal.blob(image.mime_type, image.data) for image in event.images]
        parent = event.parent_tool_use_id or (run.parent_tool_use_id if run else None)
        self.journal.emit("tool_result", fields, turn_id=self._place(parent), parent=parent)

    def _take_background(self, tasks: Sequence[base.BackgroundTask], ended: Mapping[str, str]) -> None:
        """What the agent does beside its turns has changed: a `task_updated` for each that began or ended."""
        known = {task["id"]: task for task in self.record.background}
        going = {
            task.id: known.get(task.id)
            or {
                "id": task.id,
                "kind": task.kind,
                "title": task.title,
                "tool_use_id": task.tool_use_id,
                "status": "running",
                "started_at": now(),
                "ended_at": None,
            }
            for task in tasks
        }
        for name, task in known.items():
            if name not in going:
                gone = task | {"status": ended.get(name, "stopped"), "ended_at": now()}
                self.journal.emit("task_updated", {"task": gone}, turn_id=self.turn_id)
        for name, task in going.items():
            if name not in known:
                self.journal.emit("task_updated", {"task": task}, turn_id=self.turn_id)
        self.record.background = list(going.values())

    def agent_lost(self) -> None:
        """The agent's process is gone, and with it all that it did in the background. Not committed yet."""
        self._take_background((), {})
        self._cut_tools.clear()
        if self.turn is None:  # else its end closes them
            self._close_open("agent", all_of_it=True)
            self.go_on()

    def _take_usage(self, usage: base.Usage) -> None:
        if self.turn is not None:
            self.turn.usage = usage
        self._take_context(usage)
        fields = {"usage": usage_json(usage), "context": self.record.context}
        self.journal.emit("usage", fields, turn_id=self.turn_id)

    def _take_context(self, usage: base.Usage) -> None:
        if usage.context_used_tokens is not None:
            window = usage.context_window_tokens or (self.record.context or {}).get("window_tokens")
            self.record.context = {"used_tokens": usage.context_used_tokens, "window_tokens": window}

    def _add_usage(self, usage: base.Usage | None, cost: float | None) -> None:
        if usage is not None:
            self._take_context(usage)
            for name, tokens in usage_json(usage).items():
                self.record.usage[name] = self.record.usage.get(name, 0) + tokens
        self.record.cost_usd = round(self.record.cost_usd + (cost or 0.0), 9)

    def _take_session(self, event: base.SessionChanged) -> None:
        seen = False
        for name in ("native_session_id", "model", "permission_mode", "title"):
            value = getattr(event, name)
            if value is not None and value != getattr(self.record, name):
                setattr(self.record, name, value)
                seen = True
        if seen:
            self.tell_session()

    # --- permissions --------------------------------------------------------------------------------------------------

    def ask(self, event: base.PermissionAsked) -> Permission:
        """The agent waits for an answer. Committed."""
        turn_id = self._place(event.parent_tool_use_id)
        permission = ask(event, id=new_id("perm"), session_id=self.record.id, turn_id=turn_id, created_at=now())
        timeout = self.record.permission_timeout_s
        if timeout is not None:
            moment = datetime.now(UTC) + timedelta(seconds=timeout)
            permission.expires_at = moment.isoformat(timespec="milliseconds")[:-6] + "Z"
        self.permissions[permission.id] = permission
        fields = {"permission_id": permission.id} | {
            name: value
            for name, value in permission.view().items()
            if name not in ("id", "session_id", "turn_id", "parent_tool_use_id", "status", "resolution")
        }
        self.journal.also(save_permission(permission))
        self.journal.emit("permission_request", fields, turn_id=turn_id, parent=event.parent_tool_use_id)
        self.set_status("requires_action")
        self.commit()
        return permission

    def resolve(self, permission: Permission, decision: str, by: By, **more: object) -> None:
        """A permission ends, once. `more` goes into its resolution."""
        if permission.resolution is not None:
            return
        permission.resolution = {"decision": decision, "by": by, "at": now()}
        permission.resolution |= {name: value for name, value in more.items() if value is not None}
        fields = {"permission_id": permission.id, "tool_use_id": permission.tool_use_id, **permission.resolution}
        self.journal.also(save_permission(permission))
        self.journal.emit(
            "permission_resolved", fields, turn_id=permission.turn_id, parent=permission.parent_tool_use_id
        )

    def go_on(self) -> None:
        """The session goes on once nothing waits for an answer."""
        if self.record.status == "requires_action":
            self.set_status("running" if self.turn is not None else "idle")

    # --- the session --------------------------------------------------------------------------------------------------

    def set_status(self, status: Status) -> None:
        """Tell a status, if it is another. While a permission waits, a session that lives is one that requires action."""
        if self.pending and status in ("running", "idle", "starting"):
            status = "requires_action"
        if self.record.status != status:
            self.record.status = status
            self.journal.emit("status", {"status": status}, turn_id=self.turn_id)

    def fail(self, code: str, message: str, *, retryable: bool) -> None:
        """Tell an error; inside a turn its end must follow."""
        if self.turn is not None:
            self.turn.failed = True
        fields = {"error": message, "code": code, "retryable": retryable}
        self.journal.emit("error", fields, turn_id=self.turn_id)

    def tell_queue(self) -> None:
        """Tell the prompts that wait."""
        items = [
            {
                "turn_id": prompt.turn_id,
                "prompt_preview": preview(prompt_text(prompt.parts)),
                "client_message_id": prompt.client_message_id,
                "delivery": "steer" if prompt.held else "queue",
            }
            for _, prompt in self.queue
        ]
        self.journal.emit("queue_updated", {"items": items, "paused": self.record.queue_paused})

    def tell_session(self) -> None:
        """Tell what can be changed of the session."""
        names = ("title", "model", "effort", "permission_mode", "labels", "native_session_id")
        session = {"id": self.record.id} | {name: getattr(self.record, name) for name in names}
        self.journal.emit("session_updated", {"session": session}, turn_id=self.turn_id)

    def drop_queue(self, reason: StopReason, *, only_dropped: bool = False) -> None:
        """Forget the prompts that wait; each gets its `done`. What the agent still holds goes once it gave it back."""
        going = [prompt for _, prompt in self.queue if prompt.dropped or not only_dropped]
        for prompt in going:
            prompt.dropped = True
            if not prompt.held:
                self.journal.also(remove_prompt(self.record.id, prompt.turn_id))
                self.done_without_turn(prompt.turn_id, reason)
        if any(not prompt.held for prompt in going):
            self.queue[:] = [entry for entry in self.queue if entry[1].held or not entry[1].dropped]
            self.record.queue_paused = self.record.queue_paused and bool(self.queue)
            self.tell_queue()
