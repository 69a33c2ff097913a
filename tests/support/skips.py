"""The tests that may be skipped, and why: the one list. `./test` and CI fail at any other skip.

A test that needs something which set-up can get is never skipped: then set-up is at fault, and the failure says so.
"""

import os
import re

import pytest

# Of the reason that a test gives for its skip: the machine that it may be on, and why there is no other way.
ALLOWED: dict[str, str] = {
    r"root may (read|write) (all|everything)": "what may not be read or written can't be tried as root; CI runs as another user too",
    r".*needs root.*": "becoming another user, giving files away and mounting are root's alone; CI runs as root too",
    r"only root is refused": "Claude Code refuses a mode to root alone",
    r"a small file system can't be mounted here": "mounting is root's alone",
    r"no PID namespaces here": "a kernel or container may refuse them",
    r"the kernel has no Landlock": "an older kernel lacks it",
    r"needs /proc and prctl|there is no /proc.*|inotify is Linux's": "on other systems than Linux",
    r"(takes no images|can't be steered|asks no questions|makes no plans|can't be forked|its mode can't be changed)": (
        "the suite for all agents asks of each what it can do"
    ),
    r"the machine was too slow to do it within one second": "a second's end can't be put off",
    r"zsh is not installed": "printed commands are tried in the shells that are there; bash is always one",
    r"npm is not installed|(npm|pnpm|yarn|cargo|go) is not installed": "a watch is tried with the package managers that are there",
    r"sshd runs as root or as a user of the system": "a user without an entry in the system's list can't be signed in",
}


def reason_of(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Why a test or a file was skipped."""
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    return str(report.longrepr)


def is_allowed(reason: str) -> bool:
    """Whether a test may be skipped for this."""
    if os.geteuid() != 0 and reason.startswith("root may"):
        return False
    return any(re.fullmatch(pattern, reason) for pattern in ALLOWED)


class Watch:
    """A plugin: what was skipped and may not be, told at the end, as a failure."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One test's setup, call or teardown has ended."""
        if report.skipped and not hasattr(report, "wasxfail"):
            self._look(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file was read."""
        if report.skipped:
            self._look(report)

    def _look(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        reason = reason_of(report)
        if not is_allowed(reason):
            self.found[report.nodeid] = reason

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """All tests have ended."""
        if self.found and not session.exitstatus:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Tell them."""
        if self.found:
            terminalreporter.section("skipped, and may not be (see tests/support/skips.py)", red=True)
            for test, reason in self.found.items():
                terminalreporter.line(f"{test}: {reason}")
