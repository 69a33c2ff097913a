"""The command line: `serve`, `run`, `agents`, `token`, `doctor`, `openapi`, `asyncapi`."""

import argparse
import logging
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from .. import __version__
from ..config import Config, load, settings
from ..errors import ConfigError
from .screen import OutputError
from .text import printable

EXIT_FAILED = 1
EXIT_USAGE = 2
INTERRUPTED = 130
# The settings that mean something to a command that is a client of the server; all others are the server's alone.
RUN_SETTINGS = ("state_path", "token_file", "log_level")
LOOK_SETTINGS = ("state_path",)


def parser() -> argparse.ArgumentParser:
    """The whole grammar of the command line; settings come from the table in `config`."""
    top = argparse.ArgumentParser(
        prog="workspace-runtime", description="Run coding agents in a workspace, and stream what they do."
    )
    top.add_argument("--version", action="version", version=f"workspace-runtime {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")

    serve = commands.add_parser("serve", help="serve a workspace over HTTP and WebSocket", allow_abbrev=False)
    serve.add_argument("workspace_path", nargs="?", metavar="PATH", help="the workspace's root (default: here)")
    serve.add_argument("--temporary", action="store_true", help=argparse.SUPPRESS)  # what `run` starts
    _add_settings(serve)

    run = commands.add_parser("run", help="run one turn in the terminal", allow_abbrev=False)
    run.add_argument("prompt", metavar="PROMPT", help="what to ask the agent; - reads it from standard input")
    run.add_argument("--agent", default="claude", help="the agent (default: claude; demo needs no key)")
    run.add_argument("--json", action="store_true", help="print the session's events, one JSON object a line")
    where = run.add_mutually_exclusive_group()
    where.add_argument(
        "--workspace", dest="workspace_path", metavar="PATH",
        help="the workspace's root (default: the one that is served here or above, else here)",
    )  # fmt: skip
    where.add_argument("--url", help="the server, where it is not the workspace's own: http://HOST:PORT")
    _add_settings(run, RUN_SETTINGS)

    for name, help_text in (
        ("doctor", "tell what works here, what is missing, and how to get it"),
        ("agents", "list the agents"),
    ):
        command = commands.add_parser(name, help=help_text, allow_abbrev=False)
        command.add_argument("workspace_path", nargs="?", metavar="PATH", help="the workspace's root (default: here)")
        _add_settings(command, LOOK_SETTINGS)
    commands.add_parser("token", help="print a new random token")
    commands.add_parser("openapi", help="print the OpenAPI document of the HTTP API")
    commands.add_parser("asyncapi", help="print the AsyncAPI document of the WebSocket")
    return top


def _add_settings(command: argparse.ArgumentParser, names: Sequence[str] | None = None) -> None:
    """The flags of the settings, or of those of these names."""
    group = command.add_argument_group("settings", "Each is an environment variable as well; the flag wins.")
    for field in settings():
        flag = field.metadata["flag"]
        if flag is None or (names is not None and field.name not in names):
            continue
        help_text = f"{field.metadata['help']} ({field.metadata['env']})".replace("%", "%%")
        if isinstance(field.default, bool):
            group.add_argument(flag, dest=field.name, nargs="?", const="true", metavar="true|false", help=help_text)
        else:
            group.add_argument(flag, dest=field.name, metavar=field.name.upper(), help=help_text)


def _with_values(arguments: Sequence[str]) -> list[str]:
    """The arguments, with a value for each flag of a boolean setting: what follows one is its value only if it is one."""
    flags = {field.metadata["flag"] for field in settings() if isinstance(field.default, bool)}
    words = {"1", "true", "yes", "on", "0", "false", "no", "off"}
    given: list[str] = []
    for place, argument in enumerate(arguments):
        follows = arguments[place + 1].lower() if place + 1 < len(arguments) else ""
        given.append(f"{argument}=true" if argument in flags and follows not in words else argument)
    return given


def main(arguments: Sequence[str]) -> int:
    """Run a command; returns its exit status. What is wrong is said on standard error, in a sentence."""
    top = parser()
    options = top.parse_args(_with_values(arguments))
    if options.command is None:
        top.print_help()
        return EXIT_USAGE
    try:
        code = _run(options)
        if sys.stdout is not None:
            sys.stdout.flush()  # what can't be written is told here, and not when Python ends
        return code
    except ConfigError as fault:
        print(f"workspace-runtime: {printable(str(fault))}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return _output_lost(None)
    except OutputError as lost:
        return _output_lost(None if isinstance(lost.fault, BrokenPipeError) else lost.fault)
    except OSError as fault:  # of the machine: a folder that this user may not use, no descriptors left
        logging.getLogger(__name__).debug("the command failed", exc_info=fault)
        where = f"{os.fsdecode(fault.filename)}: " if isinstance(fault.filename, (str, bytes)) else ""
        words = f"{where}{fault.strerror or fault}. See that this user may use it; --log-level debug tells more."
        print(f"workspace-runtime: {printable(words)}", file=sys.stderr)
        return EXIT_USAGE


def _output_lost(fault: OSError | None) -> int:
    """Standard output takes nothing more; None where its reader has gone, who knows that."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if fault is not None:
        print(f"workspace-runtime: standard output can't be written: {fault.strerror}.", file=sys.stderr)
    return EXIT_FAILED


def _run(options: argparse.Namespace) -> int:
    if sys.stdout is None and options.command != "serve":
        raise ConfigError("standard output is closed, so there is nothing to write to.")
    if options.command == "token":
        print(secrets.token_hex(32))
        return 0
    if options.command in ("openapi", "asyncapi"):
        from ..documents import asyncapi, openapi

        sys.stdout.write(openapi() if options.command == "openapi" else asyncapi())
        return 0
    flags = {field.name: getattr(options, field.name, None) for field in settings()}
    config = load(flags, os.environ, lambda words: print(f"workspace-runtime: {printable(words)}", file=sys.stderr))
    if options.command == "serve":
        return _serve(config, temporary=options.temporary)
    from .finding import served_above

    folder = config.root
    if options.workspace_path is None and config.workspace_path == Path():
        config = served_above(config)
    if options.command == "run":
        from .run import run_turn

        prompt = _standard_input() if options.prompt == "-" else options.prompt
        return run_turn(config, prompt, agent=options.agent, folder=folder, as_json=options.json, url=options.url)
    from .doctor import print_agents, print_report

    return print_report(config) if options.command == "doctor" else print_agents(config)


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError:
        raise ConfigError("The prompt is not UTF-8. Convert it first, for example with iconv.") from None


def _serve(config: Config, *, temporary: bool) -> int:
    from ..server import configure_logging, end_process, forget_own_environment, run_loop, serve
    from ..state import StateFolder
    from .hints import welcome

    configure_logging(config.log_level, config.log_format)
    if not temporary:
        StateFolder(config.state).await_turn(config, lambda words: print(printable(words), file=sys.stderr, flush=True))
    forget_own_environment()
    run_loop(lambda: serve(config, lambda url: print(welcome(config, url), flush=True), temporary=temporary))
    end_process(0)
