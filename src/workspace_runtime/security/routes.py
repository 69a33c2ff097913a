"""The doors of signing in: a cookie for browsers, tickets for WebSockets and downloads."""

import asyncio
import logging
from typing import Annotated
from urllib.parse import unquote

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from workspace_runtime.config import Config
from workspace_runtime.errors import WorkspaceError
from workspace_runtime.logs import told

from .gate import Gate
from .tokens import COOKIE_LIFETIME_S, TICKET_LIFETIME_S

logger = logging.getLogger(__name__)

# A wrong token is answered so much later: slow for whoever guesses, and nobody else waits.
WRONG_TOKEN_DELAY_S = 0.3


class SignIn(BaseModel):
    """The server's token."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"token": "the content of the token file"}]}
    )
    token: Annotated[str, StringConstraints(min_length=1, max_length=512)]


class SignedIn(BaseModel):
    """Whether a token is wanted here, and whether this client has shown it."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"required": True, "signed_in": True}]})
    required: bool = Field(description="False: no token is set, and whoever may connect needs none.")
    signed_in: bool


class TicketFor(BaseModel):
    """What the ticket is for."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"path": "/api/v1/ws/agent-sessions/3f9c2a"}]}
    )
    path: Annotated[str, StringConstraints(pattern=r"^/", max_length=8192)] = Field(
        description="The path as it will stand in the URL. A query after it is allowed, and not looked at."
    )


class Ticket(BaseModel):
    """A ticket for one request: append `?ticket=…`."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"ticket": "yG1cZ0bXv1cO4rFnJtqgN3l8b0wq2dJk", "expires_in_s": 30.0}]}
    )
    ticket: str
    expires_in_s: float


def auth_router(config: Config, gate: Gate, *, wrong_token_delay_s: float = WRONG_TOKEN_DELAY_S) -> APIRouter:
    """The routes for one server."""
    router = APIRouter(prefix="/api/v1/auth", tags=["Sign-in"])
    cookie_path = config.root_path or "/"

    @router.post("/session", response_model=SignedIn, summary="Sign in")
    async def sign_in(request: Request, body: SignIn, response: Response) -> SignedIn:
        """Show the token, and get a cookie that stands for it (HttpOnly, SameSite=Strict, good for 30 days).

        Where no token is set, nothing is needed and nothing is set.
        """
        response.headers["Cache-Control"] = "no-store"
        if gate.tokens is None:
            return SignedIn(required=False, signed_in=True)
        if not gate.tokens.is_token(body.token.encode()):
            client = gate.outside(request.scope).client
            logger.warning("sign-in failed", extra=told(code="auth_required", client=client, tried="form"))
            await asyncio.sleep(wrong_token_delay_s)
            raise WorkspaceError("auth_required", "This is not the server's token.")
        response.set_cookie(
            gate.cookie_name(request.scope),
            gate.tokens.make_cookie(),
            max_age=COOKIE_LIFETIME_S,
            path=cookie_path,
            secure=gate.outside(request.scope).scheme == "https",
            httponly=True,
            samesite="strict",
        )
        return SignedIn(required=True, signed_in=True)

    @router.get("/session", response_model=SignedIn, summary="Signed in?")
    async def session(request: Request, response: Response) -> SignedIn:
        """Tell whether a token is wanted, and whether this client has shown it, by whatever means."""
        response.headers["Cache-Control"] = "no-store"
        signed_in = not gate.admit(request.scope, "/api/v1/auth/session").stranger
        return SignedIn(required=gate.tokens is not None, signed_in=signed_in)

    @router.delete("/session", status_code=204, summary="Sign out")
    async def sign_out(request: Request, response: Response) -> None:
        """End this browser's sign-in and remove the cookie. Without one it is done already."""
        cookie = gate.cookie(request.scope)
        if gate.tokens is not None and cookie is not None:
            gate.tokens.revoke_cookie(cookie)
        response.delete_cookie(
            gate.cookie_name(request.scope),
            path=cookie_path,
            secure=gate.outside(request.scope).scheme == "https",
            httponly=True,
            samesite="strict",
        )

    @router.post("/tickets", status_code=201, response_model=Ticket, summary="Get a ticket")
    async def ticket(body: TicketFor, response: Response) -> Ticket:
        """A ticket for one `GET` or WebSocket of one path within 30 s, for what can't send a header: a WebSocket, a
        download. Append `?ticket=…` to the URL. Where no token is set, none is looked at."""
        response.headers["Cache-Control"] = "no-store"
        if gate.tokens is None:
            return Ticket(ticket="none-needed", expires_in_s=TICKET_LIFETIME_S)
        path = unquote(body.path.partition("?")[0])
        if config.root_path and path.startswith(config.root_path + "/"):
            path = path[len(config.root_path) :]
        return Ticket(ticket=gate.tokens.make_ticket(path), expires_in_s=TICKET_LIFETIME_S)

    return router
