"""Sockets that a test leaves open: told with the test that made them, and not blamed on whichever runs when they are found.

Python finds a forgotten socket when it collects garbage, at any time later. So each socket remembers which test made it, and where.
"""

import os
import socket
import sys
import warnings
from typing import Any

_BETWEEN = "between the tests"


def watch() -> None:
    """Watch all sockets of this process from now on. What is forgotten is closed, and warned of (`ResourceWarning`)."""
    init = socket.socket.__init__

    def made(self: socket.socket, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        _MADE[id(self)] = (os.environ.get("PYTEST_CURRENT_TEST", _BETWEEN), _place())

    def forgotten(self: socket.socket) -> None:
        origin = _MADE.pop(id(self), None)
        try:
            if self.fileno() < 0:
                return
            told = repr(self)
            self.close()
        except OSError:
            return
        if origin is not None and not sys.is_finalizing():
            test, place = origin
            warnings.warn(f"{test} left open {told}, made in {place}", ResourceWarning, source=self, stacklevel=1)

    socket.socket.__init__ = made  # type: ignore[method-assign]
    socket.socket.__del__ = forgotten  # type: ignore[attr-defined]


_MADE: dict[int, tuple[str, str]] = {}


def _place() -> str:
    """Where the socket was made: the innermost lines outside of the libraries, and the innermost of all."""
    frame = sys._getframe(2)
    lines: list[str] = []
    while frame is not None and len(lines) < 12:
        lines.append(f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back  # type: ignore[assignment]
    return " < ".join(lines)
