"""The command. It imports nothing heavy before the keeper stands: the keeper's process stays as small as it is here."""

import sys

from .keeper import run_kept

# Commands that start processes of their own: nothing of them may outlive the command.
KEPT = frozenset({"serve"})


def main() -> int:
    """Run the command with the arguments of the process; returns its exit status."""
    arguments = sys.argv[1:]

    def command() -> int:
        try:
            from .cli import main as run_command

            return run_command(arguments)
        except KeyboardInterrupt:  # also while the imports run: whoever pressed the key knows why it ends
            return 130

    return run_kept(command) if arguments and arguments[0] in KEPT else command()


if __name__ == "__main__":
    sys.exit(main())
