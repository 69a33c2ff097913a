"""Times of files as the API tells them."""

import datetime

_from = datetime.datetime.fromtimestamp
_UTC = datetime.UTC


def timestamp(nanoseconds: int | None) -> datetime.datetime | None:
    """A time of a file (`st_mtime_ns`) in UTC; None where it is one that no calendar has."""
    if nanoseconds is None:
        return None
    try:
        return _from(nanoseconds / 1e9, _UTC)
    except (OverflowError, ValueError, OSError):
        return None
