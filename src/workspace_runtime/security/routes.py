"""The doors of signing in: a cookie for browsers, tickets for WebSockets and downloads."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, StringConstraints

from workspace_runtime.config import Config
from workspace_runtime.errors import WorkspaceError

from .gate import Gate
from .tokens import COOKIE_LIFETIME_S, TICKET_LIFETIME_S

# A wrong token is answered so much later: slow for who guesses, and nobody else waits.
WRONG_TOKEN_DELAY_S = 0.3


class SignIn(BaseModel):
    """The server's token."""

    model_config = ConfigDict(extra="forbid")
    token: Annotated[str, StringConstraints(min_length=1, max_length=512)]


class SignedIn(BaseModel):
    """Whether a token is wanted here, and whether this client has shown it."""

    required: bool
    signed_in: bool


class TicketFor(BaseModel):
    """The path that the ticket is for, without query and without a proxy's prefix."""

    model_config = ConfigDict(extra="forbid")
    path: Annotated[str, StringConstraints(pattern=r"^/", max_length=4096)]


class Ticket(BaseModel):
    """A ticket for one request: append `?ticket=…`."""

    ticket: str
    expires_in_s: float


def auth_router(config: Config, gate: Gate) -> APIRouter:
    """The routes for one server."""
    router = APIRouter(prefix="/api/v1/auth", tags=["Sign-in"])
    path = config.root_path or "/"

    def signed_in(request: Request) -> bool:
        if gate.tokens is None:
            return True
        return not gate.admit(request.scope, "/api/v1/auth/session").stranger

    @router.post("/session", response_model=SignedIn, summary="Sign in")
    async def sign_in(request: Request, body: SignIn, response: Response) -> SignedIn:
        """Show the token, and get a cookie for it (HttpOnly, SameSite=Strict). Without a token in force nothing is needed."""
        if gate.tokens is None:
            return SignedIn(required=False, signed_in=True)
        if not gate.tokens.is_token(body.token.encode()):
            await asyncio.sleep(WRONG_TOKEN_DELAY_S)
            raise WorkspaceError("auth_required", "This is not the server's token.")
        scheme, _ = gate.outside(request.scope, request.headers.get("host", "").encode("latin-1"))
        response.set_cookie(
            gate.cookie_name,
            gate.tokens.make_cookie(),
            max_age=COOKIE_LIFETIME_S,
            path=path,
            secure=scheme == "https",
            httponly=True,
            samesite="strict",
        )
        return SignedIn(required=True, signed_in=True)

    @router.get("/session", response_model=SignedIn, summary="Signed in?")
    async def session(request: Request) -> SignedIn:
        """Tell whether a token is wanted, and whether this client is signed in."""
        return SignedIn(required=gate.tokens is not None, signed_in=signed_in(request))

    @router.delete("/session", status_code=204, summary="Sign out")
    async def sign_out(response: Response) -> None:
        """Remove the cookie."""
        response.delete_cookie(gate.cookie_name, path=path, httponly=True, samesite="strict")

    @router.post("/tickets", status_code=201, response_model=Ticket, summary="Get a ticket")
    async def ticket(body: TicketFor) -> Ticket:
        """A ticket for one request to one path within 30 s, for what can't send a header: a WebSocket, a download."""
        if gate.tokens is None:
            return Ticket(ticket="none-needed", expires_in_s=TICKET_LIFETIME_S)
        return Ticket(ticket=gate.tokens.make_ticket(body.path), expires_in_s=TICKET_LIFETIME_S)

    return router
