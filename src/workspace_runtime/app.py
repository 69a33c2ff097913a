"""The application: the only place that puts all parts together."""

import contextlib
import os
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any

from . import __version__
from .config import Config
from .documentation import build_api
from .entry import Entry
from .events.log import EventLog
from .events.model import MAX_EVENT_BYTES
from .paths import WorkspaceRoot
from .security.cors import Cors
from .security.gate import Gate
from .security.routes import auth_router
from .sessions import store
from .sessions.actor import QUEUE_LIMIT
from .sessions.drivers.base import Agent
from .sessions.drivers.claude import ClaudeAgent
from .sessions.drivers.demo import DemoAgent
from .sessions.manager import SessionManager
from .sessions.routes import agents_router
from .sessions.routes import router as sessions_router
from .state import StateFolder
from .system.health import Health

FEATURES = ("agents", "agent_sessions", "permissions", "events", "sse", "websocket")
MAX_FRAME_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Application:
    """One server's parts. `entry` is the ASGI application that a server runs."""

    config: Config
    entry: Entry
    manager: SessionManager
    health: Health
    log: EventLog


def default_agents(state: StateFolder) -> list[Agent]:
    """The agents that are built in."""
    return [ClaudeAgent(state.runtime), DemoAgent(state.demo)]


@contextlib.asynccontextmanager
async def create_app(config: Config, agents: Iterable[Agent] | None = None) -> AsyncIterator[Application]:
    """Open the state and build the server's parts; on leaving, end all agents and close the state.

    Raises `ConfigError` when the state folder can't be used.
    """
    state = StateFolder(config.state)
    with state.locked(config):
        log = EventLog.open(state.path, store.SCHEMA)
        try:
            root = WorkspaceRoot(config.root)
            manager = SessionManager(
                log,
                root,
                agents if agents is not None else default_agents(state),
                max_running=config.max_running_agents,
                history_max_events=config.history_max_events,
            )
            await manager.load()
            health = Health(
                __version__,
                lambda: log.healthy,
                lambda: {"workspace_id": config.workspace_id, "running_agents": manager.running},
            )
            gate = Gate(config)
            routers = [agents_router, sessions_router, auth_router(config, gate)]
            api = build_api(routers, lambda: about(config, root))
            api.state.manager = manager
            entry = Entry(config, gate, Cors(config), manager, health, api)
            try:
                yield Application(config, entry, manager, health, log)
            finally:
                health.stopping = True
                await manager.close()
        finally:
            await log.close()


def about(config: Config, root: WorkspaceRoot) -> dict[str, Any]:
    """The answer of `GET /api/v1`."""
    return {
        "version": __version__,
        "workspace": {
            "id": config.workspace_id,
            "name": os.path.basename(root.path) or "root",
            "root": os.fsdecode(root.path),
        },
        "features": list(FEATURES),
        "limits": {
            "max_body_bytes": config.max_body_bytes,
            "max_frame_bytes": MAX_FRAME_BYTES,
            "max_event_bytes": MAX_EVENT_BYTES,
            "max_queue_length": QUEUE_LIMIT,
            "max_running_agents": config.max_running_agents,
            "history_max_events": config.history_max_events,
            "max_page_items": 1000,
        },
    }
