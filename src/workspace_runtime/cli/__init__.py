"""The command line: what each command takes, and what it prints."""

from .commands import main, parser

__all__ = ["main", "parser"]
