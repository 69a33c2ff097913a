"""Which answers other origins' pages may read."""

from typing import Any

import pytest

from workspace_runtime.config import Config
from workspace_runtime.security.cors import Cors, plain_origin

APP = b"http://localhost:5173"


def scope(**headers: bytes) -> dict[str, Any]:
    return {"headers": [(name.replace("_", "-").encode(), value) for name, value in headers.items()]}


@pytest.fixture
def cors() -> Cors:
    return Cors(Config(allowed_origins=(APP.decode(), "https://App.example:443")))


def test_without_allowed_origins_there_is_none() -> None:
    assert not Cors(Config()).active


def test_an_allowed_origin_may_read_answers_and_the_headers_it_needs(cors: Cors) -> None:
    assert cors.active
    assert cors.headers(scope(origin=APP)) == [
        (b"vary", b"Origin"),
        (b"access-control-allow-origin", APP),
        (b"access-control-allow-credentials", b"true"),
        (b"access-control-expose-headers", b"ETag, Location, Content-Range, Retry-After, X-Request-ID"),
    ]


@pytest.mark.parametrize("origin", [b"https://app.example", b"https://app.example:443", b"HTTPS://APP.EXAMPLE"])
def test_origins_compare_without_case_and_default_port(cors: Cors, origin: bytes) -> None:
    assert (b"access-control-allow-origin", origin) in cors.headers(scope(origin=origin))


@pytest.mark.parametrize(
    "origin",
    [
        b"null",
        b"",
        b"*",
        b"http://localhost",
        b"http://localhost:51730",
        b"https://localhost:5173",
        b"http://localhost:5173/",
        b"http://localhost:5173, http://localhost:5173",
        b"http://localhost:5173.evil.example",
        b"http://evil.example",
    ],
)
def test_any_other_may_not(cors: Cors, origin: bytes) -> None:
    assert cors.headers(scope(origin=origin)) == [(b"vary", b"Origin")]
    assert cors.headers(scope()) == [(b"vary", b"Origin")]


def test_a_preflight_allows_what_is_asked_for(cors: Cors) -> None:
    asked = scope(
        origin=APP, access_control_request_method=b"PUT", access_control_request_headers=b"authorization,if-match"
    )
    told = dict(cors.preflight(asked))
    assert b"PUT" in told[b"access-control-allow-methods"].split(b", ")
    assert told[b"access-control-allow-headers"] == b"authorization,if-match"
    assert told[b"access-control-max-age"] == b"600"
    assert b"access-control-allow-private-network" not in told
    private = cors.preflight(scope(origin=APP, access_control_request_private_network=b"true"))
    assert (b"access-control-allow-private-network", b"true") in private


def test_plain_origin() -> None:
    assert plain_origin(b"http://a:80") == b"http://a"
    assert plain_origin(b"http://a:443") == b"http://a:443"
    assert plain_origin(b"http://a:8080") == b"http://a:8080"
    assert plain_origin(b"null") == b"null"
