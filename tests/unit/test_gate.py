"""Who may connect, case by case."""

import base64
import hmac
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workspace_runtime.config import Config
from workspace_runtime.errors import WorkspaceError
from workspace_runtime.security.connection import PEER_STATE, TARGET_STATE
from workspace_runtime.security.gate import Access, Gate

TOKEN = "correct-horse-battery-staple"
APP = "http://localhost:5173"
OPEN = Gate(Config(allowed_origins=(APP,), allowed_hosts=("Box.example",)))
LOCKED = Gate(Config(token=TOKEN, allowed_origins=(APP,), port=0))
PROXIED = Gate(Config(token=TOKEN, trusted_proxies=("127.0.0.1/32", "10.0.0.0/8"), allowed_hosts=("box.example",)))


def scope(
    *headers: str, method: str = "GET", kind: str = "http", query: str = "", peer: object = True, host: str | None = "localhost:3002",
    client: str = "127.0.0.1", subprotocols: tuple[str, ...] = (), target: bytes | None = None,
) -> dict[str, Any]:  # fmt: skip
    """A scope as the server makes it; each header as `name: value`."""
    pairs = [tuple(part.encode("latin-1") for part in header.split(": ", 1)) for header in headers]
    if host is not None:
        pairs.insert(0, (b"host", host.encode("latin-1")))
    made: dict[str, Any] = {
        "type": kind,
        "scheme": "http" if kind == "http" else "ws",
        "headers": pairs,
        "query_string": query.encode(),
        "server": ("127.0.0.1", 3002),
        "client": (client, 50000),
        "state": {PEER_STATE: peer, **({TARGET_STATE: target} if target is not None else {})},
    }
    if kind == "http":
        made["method"] = method
    else:
        made["subprotocols"] = list(subprotocols)
    return made


def judged(gate: Gate, made: dict[str, Any], path: str = "/api/v1") -> str:
    """How it was let in, or the code of the refusal."""
    try:
        access = gate.admit(made, path)
    except WorkspaceError as fault:
        return fault.code
    return access.by


# --- peer -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("peer", [False, None, 1, "yes"])
def test_without_a_token_only_a_peer_that_was_looked_up_comes_in(peer: object) -> None:
    assert judged(OPEN, scope()) == "peer"
    assert judged(OPEN, scope(peer=peer)) == "peer_refused"
    assert judged(OPEN, scope(peer=peer, kind="websocket")) == "peer_refused"
    without = scope()
    del without["state"]
    assert judged(OPEN, without) == "peer_refused"


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready"])
def test_health_is_for_all_and_details_for_whoever_may_connect(path: str) -> None:
    assert not OPEN.admit(scope(), path).stranger
    assert OPEN.admit(scope(peer=False), path).stranger
    assert OPEN.admit(scope(host="evil.example"), path).stranger
    assert OPEN.admit(scope(host=None), path).stranger
    assert OPEN.admit(scope("origin: http://evil.example"), path).stranger
    assert LOCKED.admit(scope(), path).stranger
    assert not LOCKED.admit(scope(f"authorization: Bearer {TOKEN}"), path).stranger


@pytest.mark.parametrize("path", ["/health/", "/healthz", "/health/live/x", "/Health", "/"])
def test_only_the_three_are_health(path: str) -> None:
    assert judged(OPEN, scope(peer=False), path) == "peer_refused"


# --- host -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:1",
        "localhost:65535",
        "127.0.0.1",
        "127.0.0.1:3002",
        "[::1]",
        "[::1]:3002",
        "box.example:80",
    ],
)
def test_our_names_on_any_port(host: str) -> None:
    assert judged(OPEN, scope(host=host)) == "peer"


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "localhost.",
        "127.0.0.2",
        "0.0.0.0",
        "[::]",
        "[::ffff:127.0.0.1]",
        "2130706433",
        "box.example.evil",
        "xbox.example",
        "[0:0:0:0:0:0:0:1]",
    ],
)
def test_other_names_are_refused(host: str) -> None:
    assert judged(OPEN, scope(host=host)) == "host_refused"


@pytest.mark.parametrize(
    "host",
    [
        "",
        " ",
        "localhost:",
        "localhost:x",
        "localhost:-1",
        "localhost:65536",
        "localhost:123456",
        "localhost, evil.example",
        "localhost/",
        "localhost@evil.example",
        "localhost evil",
        "::1",
        "[::1",
        "[::1]x",
        "localhost\n",
        "loéalhost",
        "localhost:²",
        "http://localhost",
        "localhost#",
        "localhost?",
        "[localhost]",
        "*",
    ],
)
def test_what_is_no_name_is_malformed(host: str) -> None:
    assert judged(OPEN, scope(host=host)) == "bad_host"
    assert judged(LOCKED, scope(f"authorization: Bearer {TOKEN}", host=host)) == "bad_host"


def test_there_is_one_host() -> None:
    assert judged(OPEN, scope(host=None)) == "bad_host"
    assert judged(OPEN, scope("host: localhost:3002")) == "bad_host"
    assert judged(OPEN, scope("host: evil.example")) == "bad_host"


def test_the_host_of_an_absolute_target_is_checked_alike() -> None:
    assert judged(OPEN, scope(target=b"127.0.0.1:3002")) == "peer"
    assert judged(OPEN, scope(target=b"evil.example")) == "host_refused"
    assert judged(OPEN, scope(target=b"localhost@evil.example")) == "bad_host"
    assert judged(OPEN, scope(target=b"")) == "bad_host"


def test_a_right_bearer_makes_the_name_unneeded() -> None:
    assert judged(LOCKED, scope(f"authorization: Bearer {TOKEN}", host="any.example")) == "bearer"
    assert judged(LOCKED, scope("authorization: Bearer wrong", host="any.example")) == "host_refused"
    cookie = f"cookie: workspace_runtime_3002={LOCKED.tokens.make_cookie()}" if LOCKED.tokens else ""
    assert judged(LOCKED, scope(cookie, host="any.example")) == "host_refused"


def test_the_address_that_the_server_was_told_to_listen_on_is_its_name() -> None:
    assert judged(Gate(Config(host="127.0.0.5")), scope(host="127.0.0.5:1")) == "peer"
    assert judged(Gate(Config(host="::1")), scope(host="[::1]:1")) == "peer"
    assert judged(Gate(Config(host="0.0.0.0", token=TOKEN)), scope(host="0.0.0.0")) == "host_refused"


@given(st.binary(max_size=30))
def test_any_host_is_judged_as_the_grammar_says(host: bytes) -> None:
    made = scope(host=None)
    made["headers"] = [(b"host", host)]
    right = re.fullmatch(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?", host)
    if right is None or int((right[2] or b":0")[1:]) > 65535:
        assert judged(OPEN, made) == "bad_host"
    elif right[1].lower() in (b"localhost", b"127.0.0.1", b"[::1]", b"box.example"):
        assert judged(OPEN, made) == "peer"
    else:
        assert judged(OPEN, made) == "host_refused"


@given(
    st.sampled_from(["localhost", "127.0.0.1", "[::1]", "box.example", "evil.example"]),
    st.integers(0, 70000),
    st.text(max_size=3),
)
def test_names_with_something_around_them(name: str, port: int, more: str) -> None:
    made = scope(host=None)
    made["headers"] = [(b"host", f"{name}:{port}{more}".encode("utf-8", "ignore"))]
    if judged(OPEN, made) == "peer":
        assert name != "evil.example"
        assert re.fullmatch("[0-9]{0,4}", more)


def test_what_is_remembered_of_names_is_bounded() -> None:
    gate = Gate(Config())
    for port in range(3000):
        judged(gate, scope(host=f"localhost:{port}"))
        judged(gate, scope(host=f"evil{port}.example"))
    assert len(gate._served) <= 256
    assert judged(gate, scope(host="localhost:9999")) == "peer"
    assert judged(gate, scope(host="evil9999.example")) == "host_refused"


# --- origin ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", ["http://localhost:3002", "HTTP://LOCALHOST:3002", APP])
@pytest.mark.parametrize("kind, method", [("http", "GET"), ("http", "POST"), ("websocket", "GET")])
def test_our_own_pages_and_allowed_ones_may_call(origin: str, kind: str, method: str) -> None:
    assert judged(OPEN, scope(f"origin: {origin}", kind=kind, method=method)) == "peer"


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "http://localhost",
        "http://localhost:3003",
        "https://localhost:3002",
        "http://127.0.0.1:3002",
        "file://",
        "http://localhost:3002/",
        "http://localhost:3002, http://localhost:3002",
        "localhost:3002",
        "http://evil.example",
        "*",
        "http://localhost:5173.evil.example",
        "http://xlocalhost:5173",
        "chrome-extension://abc",
    ],
)
@pytest.mark.parametrize(
    "kind, method", [("http", "GET"), ("http", "OPTIONS"), ("http", "DELETE"), ("websocket", "GET")]
)
def test_other_pages_may_not(origin: str, kind: str, method: str) -> None:
    assert judged(OPEN, scope(f"origin: {origin}", kind=kind, method=method)) == "origin_refused"
    assert judged(OPEN, scope(f"origin: {origin}", kind=kind, method=method), "/") == "origin_refused"
    with_token = scope(f"origin: {origin}", f"authorization: Bearer {TOKEN}", kind=kind, method=method)
    assert judged(LOCKED, with_token) == "origin_refused"


def test_an_origin_is_told_once() -> None:
    assert judged(OPEN, scope(f"origin: {APP}", f"origin: {APP}")) == "origin_refused"


def test_default_ports_are_no_difference() -> None:
    assert judged(OPEN, scope("origin: http://localhost", host="localhost:80")) == "peer"
    assert judged(OPEN, scope("origin: http://localhost:80", host="localhost")) == "peer"
    assert judged(OPEN, scope("origin: http://localhost:443", host="localhost")) == "origin_refused"


@pytest.mark.parametrize(
    "site, by", [("same-origin", "peer"), ("none", "peer"), ("same-site", ""), ("cross-site", ""), ("", ""), ("x", "")]
)
def test_without_an_origin_the_browser_tells_the_site(site: str, by: str) -> None:
    assert judged(OPEN, scope(f"sec-fetch-site: {site}")) == (by or "origin_refused")
    assert judged(OPEN, scope(f"sec-fetch-site: {site}", "sec-fetch-mode: no-cors")) == (by or "origin_refused")


@pytest.mark.parametrize("path", ["/", "/docs", "/redoc"])
def test_a_link_from_anywhere_may_lead_to_a_page(path: str) -> None:
    link = ("sec-fetch-site: cross-site", "sec-fetch-mode: navigate")
    assert judged(OPEN, scope(*link), path) == "peer"
    assert judged(OPEN, scope(*link, method="HEAD"), path) == "peer"
    assert judged(OPEN, scope(*link, method="POST"), path) == "origin_refused"
    assert judged(OPEN, scope("sec-fetch-site: cross-site", "sec-fetch-mode: no-cors"), path) == "origin_refused"
    assert judged(OPEN, scope("sec-fetch-site: cross-site"), path) == "origin_refused"
    assert judged(OPEN, scope(*link), path + "x") == "origin_refused"
    assert judged(OPEN, scope(*link), "/api/v1/files") == "origin_refused"


def test_an_origin_counts_before_the_site() -> None:
    assert judged(OPEN, scope(f"origin: {APP}", "sec-fetch-site: cross-site")) == "peer"
    assert judged(OPEN, scope("origin: null", "sec-fetch-site: same-origin")) == "origin_refused"


@given(st.binary(max_size=40))
def test_any_other_origin_is_foreign(origin: bytes) -> None:
    made = scope()
    made["headers"].append((b"origin", origin))
    if origin.lower() not in (b"http://localhost:3002", APP.encode()):
        assert judged(OPEN, made) == "origin_refused"


def test_a_preflight_needs_no_sign_in_but_a_known_origin() -> None:
    asks = "access-control-request-method: PUT"
    for gate in (OPEN, LOCKED):
        made = scope(f"origin: {APP}", asks, "sec-fetch-site: same-site", method="OPTIONS")
        assert gate.admit(made, "/api/v1") == Access("preflight", stranger=True)
        assert judged(gate, scope("origin: http://evil.example", asks, method="OPTIONS")) == "origin_refused"
        assert judged(gate, scope(f"origin: {APP}", asks, method="OPTIONS", host="evil.example")) == "host_refused"
    assert judged(LOCKED, scope(f"origin: {APP}", method="OPTIONS")) == "auth_required"
    assert judged(LOCKED, scope(asks, method="OPTIONS")) == "auth_required"
    assert judged(LOCKED, scope(f"origin: {APP}", asks, method="PUT")) == "auth_required"
    assert judged(OPEN, scope(f"origin: {APP}", asks, method="OPTIONS", peer=False)) == "peer_refused"


# --- token ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", [f"Bearer {TOKEN}", f"bearer {TOKEN}", f"BEARER  {TOKEN} "])
def test_the_bearer_header(header: str) -> None:
    assert judged(LOCKED, scope(f"authorization: {header}", peer=False)) == "bearer"


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        TOKEN,
        f"Basic {TOKEN}",
        f"Bearer{TOKEN}",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        "Bearer \u00e9",
    ],
)
def test_a_wrong_bearer_header(header: str) -> None:
    assert judged(LOCKED, scope(f"authorization: {header}")) == "auth_required"


def test_no_header_and_two_headers() -> None:
    assert judged(LOCKED, scope()) == "auth_required"
    assert judged(LOCKED, scope(f"authorization: Bearer {TOKEN}", f"authorization: Bearer {TOKEN}")) == "auth_required"


def test_the_token_is_compared_in_constant_time_and_never_told(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bytes, bytes]] = []

    def comparing(left: bytes, right: bytes) -> bool:
        seen.append((left, right))
        return left == right

    monkeypatch.setattr(hmac, "compare_digest", comparing)
    with pytest.raises(WorkspaceError) as refused:
        LOCKED.admit(scope("authorization: Bearer wrong-token"), "/api/v1")
    assert seen == [(b"wrong-token", TOKEN.encode())]
    assert "wrong-token" not in refused.value.detail + str(refused.value.data)


def test_the_cookie() -> None:
    assert LOCKED.tokens is not None
    cookie = LOCKED.tokens.make_cookie()
    for header in (
        f"workspace_runtime_3002={cookie}",
        f'a={{"b": "c"}}; workspace_runtime_3002={cookie};x',
        f"=;;workspace_runtime_3002={cookie}",
    ):
        assert judged(LOCKED, scope(f"cookie: {header}")) == "cookie"
        assert judged(LOCKED, scope(f"cookie: {header}", kind="websocket")) == "cookie"
    assert judged(LOCKED, scope("cookie: a=b", f"cookie: workspace_runtime_3002={cookie}")) == "cookie"
    for header in (
        f"workspace_runtime_3003={cookie}",
        f"xworkspace_runtime_3002={cookie}",
        f"workspace_runtime_3002={TOKEN}",
        "workspace_runtime_3002=",
    ):
        assert judged(LOCKED, scope(f"cookie: {header}")) == "auth_required"


def test_a_cookie_does_not_help_a_foreign_page_nor_a_wrong_bearer() -> None:
    assert LOCKED.tokens is not None
    cookie = f"cookie: workspace_runtime_3002={LOCKED.tokens.make_cookie()}"
    for method in ("GET", "POST"):
        assert judged(LOCKED, scope(cookie, "origin: http://localhost:9999", method=method)) == "origin_refused"
        assert judged(LOCKED, scope(cookie, "sec-fetch-site: same-site", method=method)) == "origin_refused"
        assert judged(LOCKED, scope(cookie, "authorization: Bearer wrong", method=method)) == "auth_required"
    assert judged(LOCKED, scope(cookie, "authorization: Basic eDp5")) == "cookie"


def test_a_ticket_is_for_reading_one_path_once() -> None:
    assert LOCKED.tokens is not None

    def ticket(path: str = "/api/v1/a") -> str:
        assert LOCKED.tokens is not None
        return "a=b&ticket=" + LOCKED.tokens.make_ticket(path)

    for kind in ("http", "websocket"):
        query = ticket()
        assert judged(LOCKED, scope(query=query, kind=kind), "/api/v1/a") == "ticket"
        assert judged(LOCKED, scope(query=query, kind=kind), "/api/v1/a") == "auth_required"
        assert judged(LOCKED, scope(query=ticket("/api/v1/b"), kind=kind), "/api/v1/a") == "auth_required"
    assert judged(LOCKED, scope(query=ticket(), method="POST"), "/api/v1/a") == "auth_required"
    assert judged(LOCKED, scope("origin: null", query=ticket()), "/api/v1/a") == "origin_refused"
    for query in ("ticket=", "ticket", "ticket=%00&ticket=x", "xticket=" + ticket()[11:]):
        assert judged(LOCKED, scope(query=query), "/api/v1/a") == "auth_required"


def encoded(token: str, padding: bool = False) -> str:
    text = base64.urlsafe_b64encode(token.encode()).decode()
    return "bearer." + (text if padding else text.rstrip("="))


def test_a_websocket_by_subprotocol() -> None:
    offered = ("workspace-runtime.v1", encoded(TOKEN))
    assert LOCKED.admit(scope(kind="websocket", subprotocols=offered), "/ws") == Access(
        "subprotocol", subprotocol=offered[0]
    )
    padded = (encoded(TOKEN, padding=True), "workspace-runtime.v1")
    assert judged(LOCKED, scope(kind="websocket", subprotocols=padded), "/ws") == "subprotocol"
    bearer = scope(f"authorization: Bearer {TOKEN}", kind="websocket", subprotocols=offered[:1])
    assert LOCKED.admit(bearer, "/ws") == Access("bearer", subprotocol="workspace-runtime.v1")
    assert OPEN.admit(scope(kind="websocket", subprotocols=offered), "/ws") == Access("peer", subprotocol=offered[0])
    assert OPEN.admit(scope(kind="websocket"), "/ws").subprotocol is None


@pytest.mark.parametrize(
    "offered",
    [
        (),
        ("workspace-runtime.v1",),
        (encoded("x"),),
        ("bearer.",),
        ("bearer.é",),
        ("bearer.a",),
        ("bearer.%%%",),
        (TOKEN,),
        ("Bearer." + encoded(TOKEN)[7:],),
        (encoded(TOKEN), encoded(TOKEN)),
        (encoded(TOKEN), "bearer.x"),
    ],
)
def test_a_wrong_subprotocol(offered: tuple[str, ...]) -> None:
    made = scope(kind="websocket", subprotocols=(*offered, "workspace-runtime.v1"))
    with pytest.raises(WorkspaceError) as refused:
        LOCKED.admit(made, "/ws")
    assert refused.value.code == "auth_required"
    assert refused.value.data == {"subprotocol": "workspace-runtime.v1"}


def test_signing_in_is_open_to_strangers_of_the_right_host_and_origin() -> None:
    path = "/api/v1/auth/session"
    assert LOCKED.admit(scope(method="POST"), path).stranger
    assert not LOCKED.admit(scope(f"authorization: Bearer {TOKEN}"), path).stranger
    assert judged(LOCKED, scope("origin: http://evil.example", method="POST"), path) == "origin_refused"
    assert judged(LOCKED, scope(host="evil.example", method="POST"), path) == "host_refused"
    assert judged(LOCKED, scope(method="POST"), "/api/v1/auth/tickets") == "auth_required"
    assert judged(LOCKED, scope(kind="websocket"), path) == "auth_required"


# --- proxies --------------------------------------------------------------------------------------------------------------

BEARER = f"authorization: Bearer {TOKEN}"
FORWARDED = ("x-forwarded-proto: https", "x-forwarded-host: box.example", "x-forwarded-for: 198.51.100.7")


def test_behind_a_trusted_proxy_the_origin_is_that_of_the_outside() -> None:
    assert judged(PROXIED, scope(BEARER, "origin: https://box.example", *FORWARDED)) == "bearer"
    assert judged(PROXIED, scope(BEARER, "origin: http://box.example", *FORWARDED)) == "origin_refused"
    assert judged(PROXIED, scope(BEARER, "origin: https://localhost:3002", *FORWARDED)) == "origin_refused"
    stranger = scope(BEARER, "origin: https://box.example", *FORWARDED, client="192.0.2.1")
    assert judged(PROXIED, stranger) == "origin_refused"
    assert judged(LOCKED, scope(BEARER, "origin: https://box.example", *FORWARDED)) == "origin_refused"


def test_a_forwarded_host_never_hides_our_own() -> None:
    assert judged(PROXIED, scope(*FORWARDED)) == "auth_required"
    assert judged(PROXIED, scope(*FORWARDED, host="evil.example")) == "host_refused"
    assert judged(PROXIED, scope("x-forwarded-host: evil.example")) == "host_refused"
    assert judged(PROXIED, scope("x-forwarded-host: ???")) == "bad_host"


def test_scheme_host_and_client_are_the_last_that_a_trusted_proxy_wrote() -> None:
    outside = PROXIED.outside(scope(*FORWARDED))
    assert (outside.scheme, outside.host, outside.client) == ("https", b"box.example", "198.51.100.7")
    lists = scope(
        "x-forwarded-proto: https, http", "x-forwarded-host: evil.example, box.example:8443",
        "x-forwarded-for: 203.0.113.9, 198.51.100.7", "x-forwarded-for: 10.1.2.3", kind="websocket",
    )  # fmt: skip
    outside = PROXIED.outside(lists)
    assert (outside.scheme, outside.host, outside.client) == ("http", b"box.example:8443", "198.51.100.7")
    for client in ("192.0.2.1", "::1", "", "unix"):
        outside = PROXIED.outside(scope(*FORWARDED, client=client))
        assert (outside.scheme, outside.host, outside.client) == ("http", b"localhost:3002", client)
    assert PROXIED.outside(scope(*FORWARDED, client="::ffff:10.0.0.1")).scheme == "https"


@pytest.mark.parametrize(
    "value, client",
    [
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("198.51.100.7:80", "198.51.100.7"),
        ("garbage", "127.0.0.1"),
        ("", "127.0.0.1"),
        ("198.51.100.7, garbage, 10.0.0.1", "10.0.0.1"),
        ("10.0.0.1, 10.0.0.2", "10.0.0.1"),
    ],
)
def test_forwarded_addresses(value: str, client: str) -> None:
    assert PROXIED.outside(scope(f"x-forwarded-for: {value}")).client == client


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [
                    b"x-forwarded-for",
                    b"x-forwarded-host",
                    b"x-forwarded-proto",
                    b"host",
                    b"origin",
                    b"cookie",
                    b"authorization",
                    b"sec-fetch-site",
                ]
            ),
            st.binary(max_size=20),
        ),
        max_size=6,
    )
)
def test_no_header_makes_it_fail_otherwise(pairs: list[tuple[bytes, bytes]]) -> None:
    made = scope(host=None)
    made["headers"] = pairs
    for gate in (OPEN, LOCKED, PROXIED):
        assert judged(gate, made) in {"peer", "bad_host", "host_refused", "origin_refused", "auth_required"}
