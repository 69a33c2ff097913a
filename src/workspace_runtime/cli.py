"""The command line: `serve`, `run`, `agents`, `token`, `doctor`, `openapi`, `asyncapi`."""

import argparse
import os
import secrets
import shutil
import sys
from collections.abc import Sequence

from . import __version__
from .config import Config, load, settings
from .errors import ConfigError

EXIT_FAILED = 1
EXIT_USAGE = 2


def parser() -> argparse.ArgumentParser:
    """The whole grammar of the command line; settings come from the table in `config`."""
    top = argparse.ArgumentParser(
        prog="workspace-runtime", description="Run coding agents in a workspace, and stream what they do."
    )
    top.add_argument("--version", action="version", version=f"workspace-runtime {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")

    serve = commands.add_parser("serve", help="serve a workspace over HTTP and WebSocket")
    serve.add_argument("workspace_path", nargs="?", metavar="PATH", help="the workspace's root (default: here)")
    _add_settings(serve)

    run = commands.add_parser("run", help="run one turn in the terminal")
    run.add_argument("prompt", metavar="PROMPT", help="what to ask the agent; - reads it from standard input")
    run.add_argument("--agent", default="claude", help="the agent (default: claude; demo needs no key)")
    run.add_argument("--json", action="store_true", help="print the session's events, one JSON object a line")
    run.add_argument("--workspace", dest="workspace_path", metavar="PATH", help="the workspace's root (default: here)")
    _add_settings(run)

    for name, help_text in (
        ("doctor", "tell what works here, what is missing, and how to get it"),
        ("agents", "list the agents"),
    ):
        command = commands.add_parser(name, help=help_text)
        command.add_argument("workspace_path", nargs="?", metavar="PATH", help="the workspace's root (default: here)")
        _add_settings(command)
    commands.add_parser("token", help="print a new random token")
    commands.add_parser("openapi", help="print the OpenAPI document of the HTTP API")
    commands.add_parser("asyncapi", help="print the AsyncAPI document of the WebSocket")
    return top


def _add_settings(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("settings", "Each is an environment variable as well; the flag wins.")
    for field in settings():
        flag = field.metadata["flag"]
        if flag is None:
            continue
        if isinstance(field.default, bool):
            group.add_argument(
                flag,
                dest=field.name,
                nargs="?",
                const="true",
                metavar="BOOL",
                help=f"{field.metadata['help']} ({field.metadata['env']})",
            )
        else:
            group.add_argument(
                flag,
                dest=field.name,
                metavar=field.name.upper(),
                help=f"{field.metadata['help']} ({field.metadata['env']})".replace("%", "%%"),
            )


def main(arguments: Sequence[str]) -> int:
    """Run a command; returns its exit status. What is wrong is said on standard error, in a sentence."""
    top = parser()
    options = top.parse_args(arguments)
    if options.command is None:
        top.print_help()
        return EXIT_USAGE
    try:
        return _run(options)
    except ConfigError as fault:
        print(f"workspace-runtime: {fault}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED


def _run(options: argparse.Namespace) -> int:
    if options.command == "token":
        print(secrets.token_hex(32))
        return 0
    if options.command in ("openapi", "asyncapi"):
        from .documents import asyncapi, openapi

        sys.stdout.write(openapi() if options.command == "openapi" else asyncapi())
        return 0
    config = _config(options)
    if options.command == "serve":
        return _serve(config)
    if options.command == "run":
        from .terminal import run_turn

        prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
        return run_turn(config, prompt, agent=options.agent, as_json=options.json)
    from .doctor import print_agents, print_report

    return print_report(config) if options.command == "doctor" else print_agents(config)


def _config(options: argparse.Namespace) -> Config:
    flags = {field.name: getattr(options, field.name, None) for field in settings()}
    return load(flags, os.environ)


def _serve(config: Config) -> int:
    from .server import configure_logging, forget_own_environment, run_loop, serve

    configure_logging(config.log_level)
    forget_own_environment()
    run_loop(lambda: serve(config, lambda url: print(welcome(config, url), flush=True)))
    return 0


def welcome(config: Config, url: str) -> str:
    """What `serve` says once it serves: where it is, and how to try it."""
    command = "workspace-runtime" if shutil.which("workspace-runtime") else os.path.abspath(sys.argv[0])
    header = ' -H "Authorization: Bearer $TOKEN"' if config.token else ""
    create = f"""curl -s{header} {url}/api/v1/agent-sessions --json '{{"agent": "demo", "prompt": "help"}}'"""
    return f"""
Workspace Runtime {__version__} serves {config.root}
at {url}  (API pages: {url}/docs)

Try it in another terminal, with the built-in demo agent (no key, no network, no AI):

  {command} run --agent demo "say Hello"
  {create}
  curl -sN{header} {url}/api/v1/agent-sessions/ID/events?events=all -H 'Accept: text/event-stream'

With Claude: {command} run "What is in this folder?"
What works here: {command} doctor
Ctrl-C stops the server and every agent; the sessions stay.
"""
