"""The application: the only place that puts all parts together."""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Iterable
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter

from . import __version__
from .bodies import MAX_PAGE_ITEMS
from .config import Config
from .documentation import build_api
from .entry import Entry
from .events.board import Board
from .events.log import EventLog
from .events.model import MAX_EVENT_BYTES
from .files.content_search import MAX_LIMIT as MAX_MATCHES
from .files.door import FileDoor
from .files.room import EXTRACT_LIMITS, MAX_UPLOAD_FILES, Files
from .files.routes import router as files_router
from .files.topic import FilesTopic
from .logs import told
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
from .streams.routes import router as events_router
from .system.health import Health
from .system.topic import StatsTopic
from .version_control.diff import MAX_BYTES as MAX_DIFF
from .version_control.diff import MAX_FILE_BYTES, MAX_FILE_LINES, MAX_LINES
from .version_control.room import VersionControl
from .version_control.routes import router as version_control_router
from .version_control.schemas.bodies import MAX_PATHS
from .version_control.status import MAX_FILES
from .version_control.topic import GitTopic

logger = logging.getLogger(__name__)

FEATURES = (
    "agents",
    "agent_sessions",
    "permissions",
    "events",
    "sse",
    "websocket",
    "files",
    "search",
    "live_events",
    "version_control",
)
# A part that takes longer to end is named in the log.
SLOW_DRAIN_S = 1.0
MAX_FRAME_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Application:
    """One server's parts. `entry` is the ASGI application that a server runs."""

    config: Config
    entry: Entry
    manager: SessionManager
    health: Health
    log: EventLog
    files: Files
    version_control: VersionControl
    board: Board

    async def drain(self) -> None:
        """Before a stop: end all agents, and let all who listen go with the last events."""
        self.health.stopping = True
        self.files.stop()
        await asyncio.gather(
            _timed("sessions", self.manager.close()), _timed("version control", self.version_control.close())
        )
        await _timed("live events", self.board.close())


async def _timed(part: str, ending: Awaitable[None]) -> None:
    """Wait for a part's end, and tell of one that is slow."""
    began = time.monotonic()
    await ending
    took = time.monotonic() - began
    if took > SLOW_DRAIN_S:
        logger.warning("slow drain", extra=told(part=part, took_s=round(took, 3)))


def default_agents(state: StateFolder) -> list[Agent]:
    """The agents that are built in."""
    return [ClaudeAgent(state.runtime), DemoAgent(state.demo)]


def routers(config: Config, gate: Gate) -> list[APIRouter]:
    """All HTTP doors that the framework serves, in the order of the documents."""
    return [
        agents_router, sessions_router, files_router, version_control_router, events_router, auth_router(config, gate),
    ]  # fmt: skip


@contextlib.asynccontextmanager
async def create_app(config: Config, agents: Iterable[Agent] | None = None) -> AsyncIterator[Application]:
    """Open the state and build the server's parts; on leaving, end all agents and close the state.

    Raises `ConfigError` when the state folder can't be used.
    """
    state = StateFolder(config.state)
    with state.locked(config):
        async with contextlib.AsyncExitStack() as stack:
            log = EventLog.open(state.path, store.SCHEMA)
            stack.push_async_callback(log.close)
            root = WorkspaceRoot(config.root)
            stack.callback(root.close)
            files = Files(
                root,
                state.path,
                state.runtime,
                max_upload_bytes=config.max_upload_bytes,
                max_body_bytes=config.max_body_bytes,
            )
            stack.callback(files.close)
            version_control = VersionControl(root, state.path, state.runtime, trusted=config.trust_repository)
            changes, repositories = FilesTopic(root), GitTopic(version_control, lambda: board)
            changes.repositories = repositories.repositories_moved
            board: Board = Board([changes, StatsTopic(config.root), repositories])
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
                lambda: log.healthy and manager.loaded,
                lambda: {"workspace_id": config.workspace_id, "running_agents": manager.running},
            )
            gate = Gate(config)
            api = build_api(routers(config, gate), lambda: about(config, root))
            api.state.manager, api.state.files, api.state.board = manager, files, board
            api.state.version_control, api.state.workspace_id = version_control, config.workspace_id
            entry = Entry(config, gate, Cors(config), manager, FileDoor(files), board, health, api)
            application = Application(config, entry, manager, health, log, files, version_control, board)
            try:
                yield application
            finally:
                await application.drain()


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
            "max_upload_bytes": config.max_upload_bytes,
            "max_upload_files": MAX_UPLOAD_FILES,
            "max_extracted_bytes": EXTRACT_LIMITS.max_bytes,
            "max_extracted_entries": EXTRACT_LIMITS.max_entries,
            "max_extracted_ratio": EXTRACT_LIMITS.max_ratio,
            "max_search_matches": MAX_MATCHES,
            "max_frame_bytes": MAX_FRAME_BYTES,
            "max_event_bytes": MAX_EVENT_BYTES,
            "max_queue_length": QUEUE_LIMIT,
            "max_running_agents": config.max_running_agents,
            "history_max_events": config.history_max_events,
            "max_page_items": MAX_PAGE_ITEMS,
            "max_status_files": MAX_FILES,
            "max_diff_bytes": MAX_DIFF,
            "max_diff_file_bytes": MAX_FILE_BYTES,
            "max_diff_file_lines": MAX_FILE_LINES,
            "max_diff_lines": MAX_LINES,
            "max_paths": MAX_PATHS,
        },
    }
