"""One session of Claude Code, through `claude-agent-sdk`.

The SDK runs the real CLI, one process a session, here as the child of a keeper. One long-lived stream carries all that it says:
permission requests, which the SDK gives to a callback, are put into that same stream as marks, so that the order on the wire is
kept and the driver reads no faster than the actor takes.

The SDK is imported only here, and only when it is needed. What is used of it beyond its public names is small and in three
places (`_query`, `_process_id`, `_close`): the raw messages instead of the parsed ones, because the parsed ones lack what tells a
denied tool from a failed one, and the process id.
"""

import asyncio
import contextlib
import importlib
import itertools
import json
import logging
import os
import tempfile
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workspace_runtime import processes
from workspace_runtime.config import kept_from_children
from workspace_runtime.errors import WorkspaceError

from . import claude_install, claude_outputs, claude_permissions, claude_prompts
from .base import (
    AgentEvent,
    AgentNotice,
    AgentStartError,
    DriverSpec,
    JsonObject,
    PermissionAnswer,
    PermissionWithdrawn,
    PromptPart,
    SessionChanged,
    ToolEnded,
    TurnEnded,
)
from .claude_events import ClaudeEvents

if TYPE_CHECKING:
    from claude_agent_sdk import (
        ClaudeAgentOptions,
        ClaudeSDKClient,
        PermissionResultAllow,
        PermissionResultDeny,
        ToolPermissionContext,
    )

logger = logging.getLogger(__name__)

# Shorter than what the runner gives any agent: the CLI's own reasons can be told.
START_TIMEOUT_S = 50.0
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
# Our own marks in the CLI's stream of messages.
_ASKED, _WAKE = "workspace_runtime_asked", "workspace_runtime_wake"
_EOF_GRACE_S = 0.5
_TERM_GRACE_S = 1.0
_DISCONNECT_S = 1.0
# How long the CLI may take to write a conversation's file; then it is kept where we do not know, or not at all.
_RESUMABLE_S = 2.0
# How long it may take to write a rule that was allowed for always.
_KEPT_S = 3.0
SETTINGS_PREFIX = "settings-"


class ClaudeDriver:
    """One CLI process for one session. See `base.Driver` for the contract, and the module for how."""

    def __init__(
        self, spec: DriverSpec, runtime_dir: Path, learn: Callable[[JsonObject], None] = lambda told: None
    ) -> None:
        self._learn = learn
        self._spec = spec
        self._model = spec.model
        self._runtime_dir = runtime_dir
        self._cwd = str(spec.cwd)
        self._env: Mapping[str, str] = {**os.environ, **spec.env}
        self._messages = ClaudeEvents(self._cwd)
        self._client: ClaudeSDKClient | None = None
        self._connect: asyncio.Task[None] | None = None
        self._keeper: int | None = None
        self._closing: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._requests: dict[str, claude_permissions.Request] = {}
        self._answers: dict[str, asyncio.Future[PermissionAnswer]] = {}
        self._unsaid: deque[AgentEvent] = deque()
        self.exit_status: int | None = None
        self._local_settings = spec.cwd / claude_permissions.LOCAL_SETTINGS
        self._numbers = itertools.count(1)
        self._errors: deque[str] = deque(maxlen=50)
        self._conversation: str | None = None
        self._settings: Path | None = None
        self._stops = 0
        self._halting: asyncio.Task[None] | None = None
        self._checks: set[asyncio.Task[None]] = set()

    # --- begin and end ------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the CLI. Raises `AgentStartError`."""
        self._check_open()
        folder = await asyncio.to_thread(claude_install.sdk_folder)
        path = await asyncio.to_thread(claude_install.executable, folder) if folder is not None else None
        if path is None:
            raise AgentStartError("agent_error", f"Claude Code is not installed. {claude_install.get_it()}")
        await asyncio.to_thread(importlib.import_module, "claude_agent_sdk")  # takes half a second, the first time
        from claude_agent_sdk import ClaudeSDKClient

        self._local_settings = await asyncio.to_thread(claude_install.local_settings, self._spec.cwd)
        if self._spec.env:
            self._settings = await asyncio.to_thread(self._write_settings)
        wrapper = await asyncio.to_thread(
            processes.keeper_wrapper, str(path), self._runtime_dir, tuple(self._own_settings())
        )
        self._check_open()
        self._client = ClaudeSDKClient(self._options(wrapper))
        # a task of its own: cancelled in the middle, the SDK would lose the process that it just started
        self._connect = asyncio.get_running_loop().create_task(self._client.connect())
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await asyncio.shield(self._connect)
            self._keeper = _process_id(self._client._transport)
            self._learn(await self._client.get_server_info() or {})
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closing is not None and task is not None and not task.cancelling():
                self._check_open()
            raise
        except TimeoutError:
            await self.close(at_once=True)
            hooks = await asyncio.to_thread(claude_install.start_hooks, self._env, self._spec.cwd)
            detail = f"Claude Code did not start within {START_TIMEOUT_S:.0f} s."
            if hooks:
                detail += f" It waits for its SessionStart hooks: {', '.join(hooks)}. See which of them hangs."
            raise AgentStartError("agent_error", detail) from None
        except Exception as fault:
            await self.close()
            raise self._start_error(fault) from fault

    def _write_settings(self) -> Path:
        """The session's `env` as a settings file: that of the user's and the project's files would win over the process's own.

        A file, since the arguments of a process can be read by everyone.
        """
        self._runtime_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        file, name = tempfile.mkstemp(prefix=SETTINGS_PREFIX, suffix=".json", dir=self._runtime_dir)
        with open(file, "w") as writer:
            json.dump({"env": dict(self._spec.env)}, writer)
        return Path(name)

    def _own_settings(self) -> list[str]:
        """Names of our own settings that the CLI would inherit: the SDK lays `env` over our environment, and removes nothing."""
        return [name for name in sorted(kept_from_children()) if name in os.environ and name not in self._spec.env]

    def _check_open(self) -> None:
        if self._closing is not None:
            raise AgentStartError("agent_died", "The session was closed.")

    def _options(self, cli_path: Path) -> "ClaudeAgentOptions":
        from claude_agent_sdk import ClaudeAgentOptions, HookMatcher

        spec = self._spec
        # the mode and the session's rules go as arguments: as options the SDK would warn that they bypass its callback
        arguments: dict[str, str | None] = {"thinking-display": "summarized"}
        if claude_install.may_bypass(self._env):
            arguments["allow-dangerously-skip-permissions"] = None
        if spec.permission_mode is not None:
            arguments["permission-mode"] = spec.permission_mode
        if spec.session_rules:
            arguments["allowedTools"] = ",".join(spec.session_rules)
        prompt: Any = {"type": "preset", "preset": "claude_code"}
        if spec.system_prompt:
            prompt["append"] = spec.system_prompt
        return ClaudeAgentOptions(
            cli_path=cli_path,
            cwd=self._cwd,
            env={**spec.env, "CLAUDE_CODE_ENABLE_TODO_TOOLS": "1"},
            model=None if spec.model == "default" else spec.model,
            effort=spec.effort,  # type: ignore[arg-type]  # checked by ClaudeAgent.check
            max_turns=spec.max_turns,
            resume=spec.native_session_id,
            fork_session=spec.fork and spec.native_session_id is not None,
            system_prompt=prompt,
            settings=str(self._settings) if self._settings is not None else None,
            setting_sources=["user", "project", "local"],
            include_partial_messages=True,
            forward_subagent_text=True,
            max_buffer_size=MAX_MESSAGE_BYTES,
            can_use_tool=self._can_use_tool,
            hooks={"PreToolUse": [HookMatcher(hooks=[self._gate])]},
            stderr=self._errors.append,
            extra_args=arguments,
        )

    def _start_error(self, fault: Exception) -> AgentStartError:
        words = str(fault)
        if self._spec.native_session_id is not None and "No conversation found" in words:
            return AgentStartError(
                "agent_error",
                f"Claude Code no longer has the conversation {self._spec.native_session_id}. The history stays; the next prompt "
                "begins a new conversation, which knows nothing of it.",
                conversation_lost=True,
            )
        if "root" in words + " ".join(self._errors) and self._spec.permission_mode == "bypassPermissions":
            return AgentStartError("agent_request_refused", _NO_BYPASS)
        data = getattr(fault, "data", None)
        error = self._messages.start_failed(data if data else None, "\n".join(self._errors) or words)
        return AgentStartError(error.code, error.message, error.retryable)

    async def close(self, *, at_once: bool = False) -> None:
        """End the CLI with all that it started, in 10 s at most. Finishes also when cancelled."""
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close(at_once))
        await processes.finish(self._closing)

    async def _close(self, at_once: bool) -> None:
        for task in (self._watch, self._halting, *self._checks):
            if task is not None:
                task.cancel()
        if self._settings is not None:
            with contextlib.suppress(FileNotFoundError):
                await asyncio.to_thread(self._settings.unlink)
        client, connect = self._client, self._connect
        if client is None or connect is None:
            return
        transport = await self._settled_transport(connect)
        with contextlib.suppress(AgentStartError):
            self._keeper = _process_id(transport) or self._keeper
        process = getattr(transport, "_process", None)
        disconnect = asyncio.get_running_loop().create_task(self._disconnect(client, transport))
        if connect.done() and not at_once:
            # the end of its input lets an idle CLI finish writing; whatever remains after that is ended with its tree
            await asyncio.wait({disconnect}, timeout=_EOF_GRACE_S)
        if self._keeper is not None:  # also when it has ended: killed, it left its tree to us
            await processes.end_tree(self._keeper, 0 if at_once else _TERM_GRACE_S)
        await asyncio.wait({disconnect, connect}, timeout=_DISCONNECT_S)
        disconnect.cancel()
        connect.cancel()
        await asyncio.gather(disconnect, connect, return_exceptions=True)
        self.exit_status = getattr(process, "returncode", None)

    async def _settled_transport(self, connect: "asyncio.Task[None]") -> Any:
        """The SDK's transport, which has its process: one that is just being started must not be lost."""
        for _ in range(100):
            transport = getattr(self._client, "_transport", None)
            if connect.done() or getattr(transport, "_process", None) is not None:
                break
            await asyncio.wait({connect}, timeout=0.02)
        return getattr(self._client, "_transport", None)

    async def _disconnect(self, client: "ClaudeSDKClient", transport: Any) -> None:
        try:
            await client.disconnect()
            if transport is not None:
                await transport.close()
        except Exception:  # the edge of the SDK: its process is ended all the same
            logger.exception("session %s: the SDK did not disconnect cleanly", self._spec.session_id)

    # --- the SDK's inside ---------------------------------------------------------------------------------------------

    def _query(self) -> Any:
        query = getattr(self._client, "_query", None)
        if query is None or not hasattr(query, "_message_send"):
            raise AgentStartError("agent_error", _UNKNOWN_SDK)
        return query

    # --- what the CLI says --------------------------------------------------------------------------------------------

    async def events(self) -> AsyncIterator[AgentEvent]:
        """All that the CLI says, as neutral events."""
        messages = self._query().receive_messages()
        try:
            async for message in messages:
                events = self._event(message)
                if self._watch is not None and any(isinstance(event, TurnEnded) for event in events):
                    await asyncio.wait({self._watch})  # a turn that is done can be gone on from
                while self._unsaid:
                    yield self._unsaid.popleft()
                for event in events:
                    yield await self._whole(event) if isinstance(event, ToolEnded) else event
        except Exception as fault:  # the edge of the SDK: whatever it was, the CLI is gone
            if self._closing is None:
                words = " · ".join(self._errors)[-2000:]
                logger.warning("session %s: Claude Code ended: %s %s", self._spec.session_id, fault, words)
        finally:
            await messages.aclose()
        for event in [*self._unsaid, *self._messages.ended()]:
            yield event

    def _event(self, message: JsonObject) -> list[AgentEvent]:
        match message.get("type"):
            case str(mark) if mark == _ASKED:
                return self._asked(self._requests.pop(message["request"]))
            case str(mark) if mark == _WAKE:
                return []
        events = self._messages.take(message)
        if self._messages.unasked:
            self._messages.unasked = False
            if self._halting is None or self._halting.done():
                self._halting = asyncio.get_running_loop().create_task(self._halt())
        if self._model not in (None, "default"):  # what was chosen stands: the CLI tells what it resolves to
            events = [replace(e, model=None) if isinstance(e, SessionChanged) else e for e in events]
        found = self._messages.session_id
        if found is not None and found != self._conversation and self._closing is None:
            self._conversation = found
            if self._watch is not None:
                self._watch.cancel()
            self._watch = asyncio.get_running_loop().create_task(self._tell_resumable(found))
        return events

    async def _whole(self, event: ToolEnded) -> ToolEnded:
        if not claude_outputs.is_preview(event.output):
            return event
        return await asyncio.to_thread(claude_outputs.whole, event, claude_install.config_folder(self._env))

    def _say_soon(self, event: AgentEvent) -> None:
        """Say something that the stream of messages does not carry."""
        self._unsaid.append(event)
        # the wake-up may find the stream full or closed: then there are messages to come, or nobody is left to tell
        with contextlib.suppress(Exception):
            self._query()._message_send.send_nowait({"type": _WAKE})

    async def _tell_resumable(self, session_id: str) -> None:
        """Say the conversation's id once the CLI has written its file: from then on it can be resumed."""
        projects = claude_install.config_folder(self._env) / "projects"

        def written() -> bool:
            """One begun elsewhere lies with the folder that it was begun in."""
            return any(projects.glob(f"*/{session_id}.jsonl"))

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_RESUMABLE_S):
                while not await asyncio.to_thread(written):  # noqa: ASYNC110  # another process writes it
                    await asyncio.sleep(0.02)
        self._say_soon(SessionChanged(native_session_id=session_id))

    # --- permissions --------------------------------------------------------------------------------------------------

    async def _can_use_tool(
        self, tool: str, input: JsonObject, context: "ToolPermissionContext"
    ) -> "PermissionResultAllow | PermissionResultDeny":
        """Called by the SDK, in a task of its own; cancelled when the CLI gives up waiting."""
        from claude_agent_sdk import PermissionResultAllow, PermissionResultDeny, PermissionUpdate

        request = claude_permissions.Request(
            id=f"ask{next(self._numbers)}",
            tool=tool,
            input=input,
            tool_use_id=context.tool_use_id,
            agent_id=context.agent_id,
            suggestions=[update.to_dict() for update in context.suggestions if update.type == "addRules"],
            title=context.title,
        )
        answered: asyncio.Future[PermissionAnswer] = asyncio.get_running_loop().create_future()
        self._requests[request.id], self._answers[request.id] = request, answered
        try:
            # into the CLI's stream of messages, behind all that it said so far
            await self._query()._message_send.send({"type": _ASKED, "request": request.id})
            answer = await answered
        except asyncio.CancelledError:
            self._say_soon(PermissionWithdrawn(request.id))
            raise
        finally:
            self._answers.pop(request.id, None)
        told = claude_permissions.reply(request, answer, self._cwd)
        if answer.scope == "always" and isinstance(told, claude_permissions.Allow):
            self._checks.add(asyncio.get_running_loop().create_task(self._check_kept(request)))
        if isinstance(told, claude_permissions.Deny):
            if request.tool_use_id is not None:
                self._messages.denied(request.tool_use_id)
            if told.interrupt:
                self._messages.interrupted()
            return PermissionResultDeny(message=told.message, interrupt=told.interrupt)
        updates = [PermissionUpdate.from_dict(update) for update in told.updates]
        return PermissionResultAllow(updated_input=told.input, updated_permissions=updates or None)

    async def _check_kept(self, request: claude_permissions.Request) -> None:
        """See that the CLI writes what was allowed for always: a file that it can't read or write it leaves alone in silence."""
        rules = {claude_permissions.notation(rule) for rule in claude_permissions.rules(request, self._cwd)}
        before = await asyncio.to_thread(claude_install.allowed, self._local_settings)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_KEPT_S):
                while not rules <= (now := await asyncio.to_thread(claude_install.allowed, self._local_settings)):
                    if now != before:  # it wrote the rule in its own words
                        return
                    await asyncio.sleep(0.05)
                return
        message = (
            f"Claude Code did not write the rule {', '.join(sorted(rules))} into {self._local_settings}: it holds for this session "
            "alone. See whether that file is valid JSON, no link, and may be written."
        )
        self._say_soon(AgentNotice("rule_not_saved", message))

    def _asked(self, request: claude_permissions.Request) -> list[AgentEvent]:
        events: list[AgentEvent] = []
        own = self._messages.input_of(request.tool_use_id)
        request = replace(request, parent_tool_use_id=self._messages.parent_of(request.agent_id))
        if request.tool_use_id is not None:
            events += self._messages.called(
                request.tool_use_id, request.tool, request.input, request.parent_tool_use_id
            )
        root, settings = self._spec.root, self._local_settings
        path = str(settings.relative_to(root) if settings.is_relative_to(root) else settings)
        asked = claude_permissions.ask(request, self._cwd, plan=own.get("plan"), local_settings=path)
        return [*events, asked] if request.id in self._answers else events

    async def answer(self, request: str, answer: PermissionAnswer) -> None:
        """Answer a permission request; one that is no longer waited for is ignored."""
        waiting = self._answers.get(request)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    # --- what the CLI is told -----------------------------------------------------------------------------------------

    async def prompt(self, parts: Sequence[PromptPart]) -> None:
        """Send a prompt; it begins a turn."""
        stops = self._stops
        if self._halting is not None and not self._halting.done():  # else that interrupt would take this prompt back
            await asyncio.wait({self._halting})
            if stops != self._stops:  # stopped meanwhile
                self._say_soon(TurnEnded("interrupted"))
                return
        await self._say(parts)

    async def steer(self, prompt: str, parts: Sequence[PromptPart]) -> None:
        """Send a prompt into the running turn: the CLI takes it in between two calls of the model."""
        await self._say(parts, prompt)

    async def _say(self, parts: Sequence[PromptPart], steered: str | None = None) -> None:
        prompt_id = str(uuid.uuid4())
        message = {
            "type": "user",
            "uuid": prompt_id,
            "message": {"role": "user", "content": claude_prompts.prompt_content(parts)},
            "parent_tool_use_id": None,
        }

        async def messages() -> AsyncIterator[JsonObject]:
            yield message

        from claude_agent_sdk import CLIConnectionError

        if steered is None:
            self._messages.prompted(prompt_id)
        else:
            self._messages.steered(prompt_id, steered)
        try:
            await self._running().query(messages())
        except CLIConnectionError as fault:  # it has ended, which the events tell
            raise ConnectionError(str(fault)) from None

    async def interrupt(self) -> None:
        """Stop the CLI: its turn, the prompts that it has not taken in, its sub-agents. Until the next prompt no tool runs."""
        self._stops += 1
        self._messages.interrupted()
        self._running()
        await self._stop()

    async def _stop(self) -> None:
        await self._query()._send_control_request({"subtype": "interrupt", "cancel_queued": True})

    async def _halt(self) -> None:
        """Stop a turn that the CLI began although it was stopped: a task in the background has ended, a timer has fired."""
        try:
            await self._stop()
        except Exception as fault:  # the edge of the SDK: a CLI that is gone is told by the end of its messages
            logger.info("session %s: Claude Code could not be stopped again: %r", self._spec.session_id, fault)

    async def _gate(self, input: Any, tool_use_id: str | None, context: Any) -> Any:
        """Called by the SDK before each tool call. While the CLI is stopped none may run, however it came to be."""
        if not self._messages.halted:
            return {}
        decision = {"permissionDecision": "deny", "permissionDecisionReason": _STOPPED}
        return {
            "continue_": False,
            "stopReason": _STOPPED,
            "hookSpecificOutput": {"hookEventName": "PreToolUse", **decision},
        }

    async def configure(self, *, model: str | None, effort: str | None, permission_mode: str | None) -> None:
        """Change the model, effort or permission mode of the running CLI. Raises `mode_refused` and `not_supported`."""
        client = self._running()
        if permission_mode == "bypassPermissions" and not claude_install.may_bypass(self._env):
            raise WorkspaceError("mode_refused", _NO_BYPASS)
        if permission_mode is not None:
            try:
                await client.set_permission_mode(permission_mode)  # type: ignore[arg-type]  # checked by ClaudeAgent.check
            except Exception as fault:
                raise WorkspaceError("mode_refused", str(fault)) from fault
        try:
            if model is not None:
                await client.set_model(None if model == "default" else model)
                self._model = model
            if effort is not None:
                order = {"subtype": "apply_flag_settings", "settings": {"effortLevel": effort}}
                await self._query()._send_control_request(order)
        except Exception as fault:
            raise WorkspaceError("not_supported", f"Claude Code refused the change: {fault}") from fault

    def _running(self) -> "ClaudeSDKClient":
        if self._client is None:
            raise ConnectionError("Claude Code is not started")
        return self._client


def _process_id(transport: Any) -> int | None:
    """The keeper's process id, also when it has ended; None where there was none. Raises `AgentStartError` when this SDK does
    not tell."""
    try:
        process = transport._process if transport is not None else None
        return process.pid if process is not None else None
    except AttributeError:
        raise AgentStartError("agent_error", _UNKNOWN_SDK) from None


_UNKNOWN_SDK = "This version of claude-agent-sdk is not known to the runtime: install the one that it names."
_STOPPED = "The user has stopped the agent: nothing runs until they say so."
_NO_BYPASS = (
    "Claude Code refuses bypassPermissions as root. Run the server as another user, or set IS_SANDBOX=1 if this machine is a "
    "sandbox."
)
