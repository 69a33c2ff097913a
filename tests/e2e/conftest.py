"""Fixtures of the end-to-end tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.claude_home import ClaudeHome
from support.claude_world import World
from support.model_server import ModelServer, threaded
from support.server import ServerProcess


@pytest.fixture(scope="module")
def model() -> Iterator[ModelServer]:
    with threaded() as server:
        yield server


@pytest.fixture
def world(tmp_path: Path, model: ModelServer) -> Iterator[World]:
    home = ClaudeHome(tmp_path / "home", tmp_path / "workspace", model.url)
    home.config.mkdir(parents=True)
    server = ServerProcess(tmp_path, env=home.env())
    home.trust(server.workspace)
    server.start()
    with server.client() as client:
        yield World(server, home, model, client)
    server.stop()
