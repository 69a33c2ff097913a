"""The HTTP doors of version control."""

from fastapi import APIRouter, Depends

from . import changing, reading, remote
from .door import known_workspace

router = APIRouter(
    prefix="/api/v1/workspaces/{id}/version-control", tags=["Version control"], dependencies=[Depends(known_workspace)]
)
for part in (reading, changing, remote):
    router.include_router(part.router)
