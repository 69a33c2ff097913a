"""What the server answers is what its own OpenAPI document says: schemathesis asks each operation, with right and wrong input."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from support.confined import ConfinedServer, confined
from support.git_home import Sandbox
from support.server import create

CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance, response_headers_conformance,
]  # fmt: skip
# They never end: asked for as events they are a stream.
STREAMS = ("/api/v1/events",)
# The address of a repository that there is not.
NOWHERE = "/nothing"
Case = schemathesis.Case[Any]
PROFILE = settings(
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConfinedServer]:
    folder = tmp_path_factory.mktemp("schema")
    sandbox = Sandbox(folder)  # its home is the server's
    sandbox.commit(sandbox.init("workspace"), {"a": b"content\n", "folder/b": b"content\n"}, "first")
    with confined(folder) as started:
        yield started


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as made:
        made.trust_env = False
        yield made


@dataclass
class Known:
    """What is really there, so that not all answers are refusals."""

    server: ConfinedServer
    session_id: str = ""

    def refresh(self) -> None:
        """Make again what a request may have taken away."""
        for name in ("a", "folder/b"):
            (self.server.workspace / name).parent.mkdir(exist_ok=True)
            with contextlib.suppress(OSError):
                (self.server.workspace / name).write_text("content\n")
        with self.server.client() as client:
            self.session_id = create(client, prompt="say hello")["id"]

    def put_into(self, case: Case, choice: str) -> None:
        """Let a case name what is there. `session` in it has an event of seq 1."""
        if case.operation.path == "/api/v1/agent-sessions/{session_id}" and case.method == "DELETE":
            return  # the others need it
        values: dict[str, object] = {"path": choice, "session_id": self.session_id, "seq": 1, "id": "default"}
        for name in case.path_parameters:
            if name in values:
                case.path_parameters[name] = values[name]
        readers = ("/api/v1/files", "/api/v1/search", "/api/v1/workspaces")
        if case.operation.path.startswith(readers) and "path" in case.query:
            case.query["path"] = choice
        if isinstance(case.body, dict) and case.operation.path.startswith("/api/v1/files/"):
            for name in ("path", "from", "path_bytes", "from_bytes"):
                if name in case.body:
                    case.body[name] = choice
            if "to" in case.body:
                case.body["to"] = "folder/b"


def ask_all(server: ConfinedServer, session: requests.Session, examples: int, mode: GenerationMode) -> list[str]:
    """Ask every operation; what was wrong. (The plugin for pytest does not work with this version of it.)"""
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json", config=SchemathesisConfig())
    wrong: list[str] = []
    known = Known(server)
    for found in schema.exclude(path=list(STREAMS)).get_all_operations():
        operation = found.ok()  # type: ignore[union-attr]  # a document that is broken raises here
        known.refresh()

        @settings(PROFILE, max_examples=examples)
        @given(
            case=operation.as_strategy(generation_mode=mode),
            choice=st.sampled_from(["", "", "a", "folder", "folder/b"]),
        )
        def ask(case: Case, choice: str) -> None:
            if isinstance(case.body, dict) and case.operation.path == "/api/v1/agent-sessions":
                case.body["agent"] = "demo"  # the other agents are large programs, and need a network
            if isinstance(case.body, dict) and isinstance(case.body.get("url"), str):
                case.body["url"] = NOWHERE  # no word of chance may become the name of another machine
            if choice:
                known.put_into(case, choice)
            headers = {"Accept": "application/json"} if case.operation.path.endswith("/events") else None
            case.call_and_validate(session=session, headers=headers, checks=CHECKS, timeout=20)

        try:
            ask()
        except Unsatisfiable:
            assert mode is GenerationMode.NEGATIVE, operation.label
        except (FailureGroup, Failure) as fault:
            wrong.append(f"{operation.label}: {[str(each) for each in getattr(fault, 'exceptions', [fault])]}")
    return wrong


@pytest.mark.timeout(200)
def test_answers_are_as_the_document_says(server: ConfinedServer, session: requests.Session) -> None:
    assert ask_all(server, session, 5, GenerationMode.POSITIVE) == []


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_answers_are_as_the_document_says_for_long(
    server: ConfinedServer, session: requests.Session, mode: GenerationMode
) -> None:
    assert ask_all(server, session, 150, mode) == []
