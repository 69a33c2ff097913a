"""What the HTTP doors share: the base of request bodies, the parameters of pages, and answers whose JSON is already made."""

from typing import Annotated, Any

import orjson
from fastapi import Query, Response
from pydantic import BaseModel, ConfigDict, model_validator

JSON = "application/json"
MAX_PAGE_ITEMS = 1000

Limit = Annotated[int, Query(ge=1, le=MAX_PAGE_ITEMS)]


class Piece(BaseModel):
    """A part of a request: unknown fields are refused, since a typing error that is ignored is worse."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Body(Piece):
    """A whole request. What JSON allows and we could not store or pass on is refused here, once for all fields."""

    @model_validator(mode="before")
    @classmethod
    def _can_be_passed_on(cls, value: Any) -> Any:
        try:
            orjson.dumps(value)
        except TypeError:
            raise ValueError("must hold valid Unicode, whole numbers of 64 bits, and no more than 250 levels") from None
        return value


def raw(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer whose JSON is already made."""
    return Response(body, status, headers, media_type=JSON)
