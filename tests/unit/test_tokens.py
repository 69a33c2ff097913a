"""What stands for the token: cookies and tickets."""

import hmac
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workspace_runtime.security.tokens import COOKIE_LIFETIME_S, MAX_REVOKED, MAX_TICKETS, Tokens

TOKEN = "correct-horse-battery-staple"


class Clock:
    """A time that stands."""

    def __init__(self) -> None:
        self.at = 1_000_000.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tokens(clock: Clock) -> Tokens:
    return Tokens(TOKEN, clock=clock, now=clock)


def test_the_token_alone_is_the_token(tokens: Tokens) -> None:
    assert tokens.is_token(TOKEN.encode())
    for wrong in (b"", TOKEN[:-1].encode(), TOKEN.encode() + b"x", TOKEN.upper().encode(), b"\xff" * 28):
        assert not tokens.is_token(wrong)


def test_every_comparison_takes_the_same_time(tokens: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real: Callable[..., bool] = hmac.compare_digest

    def counting(left: bytes, right: bytes) -> bool:
        seen.append(len(left))
        return real(left, right)

    monkeypatch.setattr(hmac, "compare_digest", counting)
    cookie = tokens.make_cookie()
    tokens.is_token(b"x")
    tokens.is_cookie(cookie)
    assert len(seen) == 2


def test_a_cookie_is_not_the_token_and_ends_in_time(tokens: Tokens, clock: Clock) -> None:
    cookie = tokens.make_cookie()
    assert TOKEN not in cookie
    assert cookie != tokens.make_cookie()
    assert tokens.is_cookie(cookie)
    clock.at += COOKIE_LIFETIME_S - 1
    assert tokens.is_cookie(cookie)
    clock.at += 1
    assert not tokens.is_cookie(cookie)


def test_a_cookie_survives_a_restart_but_not_another_token(tokens: Tokens, clock: Clock) -> None:
    cookie = tokens.make_cookie()
    assert Tokens(TOKEN, clock=clock, now=clock).is_cookie(cookie)
    assert not Tokens(TOKEN + "2", clock=clock, now=clock).is_cookie(cookie)


def test_no_part_of_a_cookie_can_be_changed(tokens: Tokens) -> None:
    cookie = tokens.make_cookie()
    for at in range(len(cookie)):
        changed = cookie[:at] + ("0" if cookie[at] != "0" else "1") + cookie[at + 1 :]
        assert not tokens.is_cookie(changed)


@given(st.text(max_size=80))
def test_any_other_text_is_no_cookie(text: str) -> None:
    fixed = Tokens(TOKEN, now=lambda: 0.0)
    assert not fixed.is_cookie(text)
    fixed.revoke_cookie(text)
    assert not fixed.use_ticket(text, text)


def test_signing_out_ends_one_cookie(tokens: Tokens) -> None:
    first, second = tokens.make_cookie(), tokens.make_cookie()
    tokens.revoke_cookie(first)
    assert not tokens.is_cookie(first)
    assert tokens.is_cookie(second)
    for _ in range(MAX_REVOKED + 10):
        tokens.revoke_cookie(tokens.make_cookie())
    assert len(tokens._revoked) == MAX_REVOKED


def test_a_ticket_is_for_one_use(tokens: Tokens) -> None:
    ticket = tokens.make_ticket("/a")
    assert tokens.use_ticket(ticket, "/a")
    assert not tokens.use_ticket(ticket, "/a")


def test_a_ticket_is_for_one_path_and_ends_at_a_wrong_one(tokens: Tokens) -> None:
    ticket = tokens.make_ticket("/a")
    assert not tokens.use_ticket(ticket, "/b")
    assert not tokens.use_ticket(ticket, "/a")
    assert not tokens.use_ticket("", "")


def test_a_ticket_ends_after_30_seconds(tokens: Tokens, clock: Clock) -> None:
    first, second = tokens.make_ticket("/a"), tokens.make_ticket("/a")
    clock.at += 29.9
    assert tokens.use_ticket(first, "/a")
    clock.at += 0.1
    assert not tokens.use_ticket(second, "/a")


def test_tickets_are_bounded(tokens: Tokens, clock: Clock) -> None:
    made = [tokens.make_ticket("/a") for _ in range(MAX_TICKETS + 1)]
    assert len(tokens._tickets) == MAX_TICKETS
    assert not tokens.use_ticket(made[0], "/a")
    assert tokens.use_ticket(made[1], "/a")
    clock.at += 31
    tokens.make_ticket("/a")
    assert len(tokens._tickets) == 1
