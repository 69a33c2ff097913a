"""What all tests share."""

import os

import pytest

from support import skips, sockets, tools

# what `scripts/tools` has unpacked comes after what the machine has
os.environ["PATH"] = os.pathsep.join([os.environ["PATH"], *tools.FOLDERS])
sockets.watch()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Asynchronous tests run on asyncio."""
    return "asyncio"


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--known-skips`: a skip that is not in the list of those that may be is a failure."""
    parser.addoption("--known-skips", action="store_true", help="fail where a test is skipped that may not be")


def pytest_configure(config: pytest.Config) -> None:
    """Watch the skips where asked to."""
    if config.getoption("--known-skips"):
        config.pluginmanager.register(skips.Watch())
