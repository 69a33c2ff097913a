"""The documents say what the code does: what is made from it is up to date, and nothing is left out."""

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest

from workspace_runtime import config, documents, reference
from workspace_runtime.cli import parser
from workspace_runtime.errors import PROBLEMS
from workspace_runtime.events.model import ALL_TYPES, LIVE_TYPES, STORED_TYPES
from workspace_runtime.streams import protocol

ROOT = Path(__file__).parent.parent.parent
SOURCES = sorted((ROOT / "src").rglob("*.py"))


@pytest.mark.parametrize(
    ("path", "made"),
    [
        ("docs/api/openapi.json", documents.openapi),
        ("docs/api/asyncapi.json", documents.asyncapi),
        ("docs/reference.md", reference.reference),
        ("docs/guides/demo.md", reference.demo),
    ],
)
def test_what_is_made_from_the_code_is_up_to_date(path: str, made: Any) -> None:
    assert (ROOT / path).read_text() == made(), f"{path} is stale: run scripts/docs"


def test_every_event_type_is_described() -> None:
    described = {
        str(get_args(model.model_fields["type"].annotation)[0])
        for union in (protocol.StoredEvent, protocol.LiveEvent)
        for model in get_args(get_args(union)[0])
    }
    assert described == ALL_TYPES == STORED_TYPES | LIVE_TYPES


def test_every_code_that_is_raised_stands_in_the_table() -> None:
    raised = set()
    for source in SOURCES:
        raised |= set(re.findall(r'WorkspaceError\(\s*"(\w+)"', source.read_text()))
    assert raised <= set(PROBLEMS)
    assert len(raised) > 30


def test_every_code_of_the_table_is_used() -> None:
    text = "".join(source.read_text() for source in SOURCES if source.name != "errors.py")
    assert [code for code in PROBLEMS if f'"{code}"' not in text] == []


def test_every_setting_has_a_flag_or_a_reason() -> None:
    fields = {field.name: field.metadata["flag"] for field in config.settings()}
    assert {name for name, flag in fields.items() if flag is None} == {"workspace_path", "token"}
    serve = parser().parse_args(["serve", "--port", "1"])
    assert all(hasattr(serve, name) for name, flag in fields.items() if flag)


def test_routes_of_the_contract_are_there() -> None:
    paths = json.loads(documents.openapi())["paths"]
    for path, methods in {
        "/health": "get",
        "/api/v1": "get",
        "/api/v1/agents": "get",
        "/api/v1/agent-sessions": "get post",
        "/api/v1/agent-sessions/{session_id}": "get patch delete",
        "/api/v1/agent-sessions/{session_id}/messages": "post",
        "/api/v1/agent-sessions/{session_id}/interrupt": "post",
        "/api/v1/agent-sessions/{session_id}/reopen": "post",
        "/api/v1/agent-sessions/{session_id}/events": "get",
        "/api/v1/agent-sessions/{session_id}/permissions/{permission_id}": "post",
        "/api/v1/files": "get",
        "/api/v1/files/{path}": "get put delete",
        "/api/v1/files/upload": "post",
        "/api/v1/files/mkdir": "post",
        "/api/v1/files/move": "post",
        "/api/v1/files/copy": "post",
        "/api/v1/search/files": "get",
        "/api/v1/search/content": "get",
        "/api/v1/events": "get",
        "/api/v1/auth/session": "get post delete",
        "/api/v1/auth/tickets": "post",
    }.items():
        assert set(methods.split()) <= set(paths[path]), path


def test_links_in_the_documents_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
