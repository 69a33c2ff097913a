"""The person at the terminal, also when the standard streams are pipes."""

import asyncio
import contextlib
import os
import sys


class Keyboard:
    """Writes to the terminal and reads lines from it. `open` gives None where there is none; `close` it."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading = reading
        self._writing = writing
        self._typed = b""

    @classmethod
    def open(cls) -> "Keyboard | None":
        """The controlling terminal, else the one on the standard streams, else None."""
        flags = os.O_NOCTTY | os.O_CLOEXEC
        with contextlib.suppress(OSError):
            # two, because a terminal can't be read and written through one buffered file; reading must not block the loop
            reading = os.open("/dev/tty", os.O_RDONLY | os.O_NONBLOCK | flags)
            return cls(reading, os.open("/dev/tty", os.O_WRONLY | flags))
        with contextlib.suppress(OSError, ValueError):
            if sys.stdin.isatty() and sys.stderr.isatty():
                return cls(os.dup(sys.stdin.fileno()), os.dup(sys.stderr.fileno()))
        return None

    def close(self) -> None:
        """Let go of the terminal."""
        os.close(self._reading)
        os.close(self._writing)

    def say(self, text: str) -> None:
        """Write to the terminal. Whatever others sent in it must be printable already."""
        data = text.encode(errors="backslashreplace")
        with contextlib.suppress(OSError):  # the terminal has gone: the next line to be read tells
            while data:
                data = data[os.write(self._writing, data) :]

    async def line(self) -> str | None:
        """The next line that is typed, without its end; None when the terminal has gone or Ctrl-D ended its input.

        Can be cancelled at any time; what was typed by then is kept for the next call.
        """
        loop = asyncio.get_running_loop()
        while b"\n" not in self._typed:
            ready = asyncio.Event()
            loop.add_reader(self._reading, ready.set)
            try:
                await ready.wait()
            finally:
                loop.remove_reader(self._reading)
            try:
                data = os.read(self._reading, 4096)
            except BlockingIOError:
                continue
            except OSError:
                return None
            if not data:
                return None
            self._typed += data
        line, _, self._typed = self._typed.partition(b"\n")
        return line.decode(errors="replace").strip()
