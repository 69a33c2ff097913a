"""Version control through the running server, against the git command: status of 20,000 files, pages of 10,000 commits, a diff, a crowd.

Ours and git's take turns in the same run; ratios and limits are of medians. The repositories are made with an own HOME. For the crowd git
is a wrapper that notes each start.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlencode

from common import median, report, server

from support.asking import Answer, ask
from support.server import ServerProcess

BASE = "/api/v1/workspaces/default/version-control"
FILES, COMMITS, LINES, CLIENTS = 20_000, 10_000, 5_000, 20
ROUNDS = 15
QUIET = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@b",
}
ENVIRONMENT = {**os.environ, **QUIET, "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}


def git(folder: Path, *arguments: str, input: bytes = b"") -> bytes:
    """Run git."""
    done = subprocess.run(
        ["git", *arguments], cwd=folder, env=ENVIRONMENT, input=input, stdout=subprocess.PIPE, check=True
    )
    return done.stdout


def many_files(folder: Path) -> None:
    """20,000 files in 2,000 folders, committed."""
    git(folder, "init", "-q", "-b", "main")
    for package in range(40):
        for module in range(50):
            place = folder / f"package{package}" / f"module{module}"
            place.mkdir(parents=True)
            for number in range(FILES // 2000):
                (place / f"file{number}.py").write_text(f"# {package} {module} {number}\n" + "x = 1\n" * 20)
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "all")


def many_commits(folder: Path) -> None:
    """10,000 commits, every hundredth a merge."""
    git(folder, "init", "-q", "-b", "main")
    lines = []
    for number in range(1, COMMITS + 1):
        when = 1_600_000_000 + 60 * number
        message = f"commit {number}\n\nsome words\n"
        lines.append(
            f"commit refs/heads/main\nmark :{number}\ncommitter a <a@b> {when} +0000\ndata {len(message)}\n{message}"
        )
        if number > 1:
            lines.append(f"from :{number - 1}\n")
        if number > 10 and number % 100 == 0:
            lines.append(f"merge :{number - 7}\n")
        content = f"{number}\n"
        lines.append(f"M 100644 inline d{number % 50}/f{number % 500}\ndata {len(content)}\n{content}\n")
    git(folder, "fast-import", "--quiet", input="".join(lines).encode())
    git(folder, "reset", "-q", "--hard")


def timed(call: Callable[[], object]) -> float:
    """How long a call takes, in ms."""
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1000


def get(process: ServerProcess, route: str, **query: object) -> Answer:
    """One answer."""
    answer = ask(process.url, "GET", f"{BASE}/{route}?{urlencode(query)}")
    assert answer.status == 200, answer
    return answer


def in_turns(ours: Callable[[], object], theirs: Callable[[], object]) -> tuple[float, float]:
    """Medians of both, in ms, each after one that does not count."""
    ours(), theirs()
    pairs = [(timed(ours), timed(theirs)) for _ in range(ROUNDS)]
    return median([one for one, _ in pairs]), median([other for _, other in pairs])


def status() -> bool:
    """The status of 20,000 files."""
    with server(**QUIET) as process:
        folder = process.workspace
        many_files(folder)
        command = (
            "--no-optional-locks",
            "status",
            "--porcelain=v2",
            "-z",
            "--branch",
            "--show-stash",
            "--untracked-files=all",
        )
        # the first of all: git takes longer for what comes early in the index, if it is asked in the wrong way
        changing = folder / "package0" / "module0" / "file0.py"
        count = 0

        def changed() -> None:
            nonlocal count
            count += 1
            changing.write_text(f"{count}\n")
            assert b"file0.py" in get(process, "status").body

        def plain() -> None:
            git(folder, *command)

        time.sleep(2)  # the agents' libraries are loaded soon after the start
        quiet, theirs = in_turns(lambda: get(process, "status"), plain)
        ok = report("status, nothing has changed", quiet, "ms", 30)
        ok &= report("status, nothing has changed, against git", quiet / theirs, "x", 1.2)
        busy, theirs = in_turns(changed, plain)
        ok &= report(f"status after each change of a file ({busy:.0f} ms, git {theirs:.0f})", busy / theirs, "x", 1.2)

        def staged() -> None:
            nonlocal count
            count += 1
            changing.write_text(f"{count}\n")
            git(folder, "add", str(changing))
            times.append(timed(lambda: get(process, "status")))

        times: list[float] = []
        _, theirs = in_turns(staged, plain)
        return report("status after each file that is staged, against git", median(times) / theirs, "x", 1.2) and ok


def history() -> bool:
    """Pages of the log at any depth; a diff of 5,000 lines."""
    with server(**QUIET) as process:
        folder = process.workspace
        many_commits(folder)
        time.sleep(2)
        first = median([timed(lambda: get(process, "log")) for _ in range(ROUNDS)])
        ok = report("log, the first page of 50", first, "ms", 40)
        times, cursor, seen = [], None, 0
        while True:
            query: dict[str, object] = {"cursor": cursor} if cursor else {}
            began = time.perf_counter()
            page = get(process, "log", **query).json
            times.append((time.perf_counter() - began) * 1000)
            seen += len(page["items"])
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert seen == COMMITS, seen
        ok &= report(f"log, the slowest of {len(times)} pages", max(times), "ms", 40)
        ok &= report("log, the last ten pages", median(times[-10:]), "ms", 40)
        (folder / "long.txt").write_text("".join(f"line {number}\n" for number in range(LINES)))
        git(folder, "add", "long.txt")
        (folder / "long.txt").write_text("".join(f"other {number}\n" for number in range(LINES // 2)))
        ours, theirs = in_turns(lambda: get(process, "diff"), lambda: git(folder, "diff"))
        return report(f"diff of {LINES * 3 // 2} lines (git alone {theirs:.1f})", ours, "ms", 60) and ok


def crowd() -> bool:
    """20 clients that ask at once."""
    with server(**QUIET) as outer:
        folder = outer.folder / "bin"
        folder.mkdir()
        log = outer.folder / "runs"
        real = (
            subprocess.run(["/bin/sh", "-c", "command -v git"], stdout=subprocess.PIPE, check=True)
            .stdout.decode()
            .strip()
        )
        (folder / "git").write_text(
            f'#!/bin/sh\ncase " $* " in *" status "*) echo "$$" >>"{log}" ;; esac\nexec {real} "$@"\n'
        )
        (folder / "git").chmod(0o755)
        with server(**QUIET, PATH=f"{folder}:{os.environ['PATH']}") as process:
            many_files(process.workspace)
            time.sleep(2)
            get(process, "status")
            counts, times = [], []
            with ThreadPoolExecutor(CLIENTS) as pool:
                for _ in range(ROUNDS):
                    log.write_text("")
                    began = time.perf_counter()
                    list(pool.map(lambda _: get(process, "status"), range(CLIENTS)))
                    times.append((time.perf_counter() - began) * 1000)
                    counts.append(len(log.read_text().split()))
            print(f"      git processes: {counts}; all answered in {median(times):.0f} ms")
            return report("20 clients at once, git processes", median(counts), "", 1)


def main() -> int:
    """All of them."""
    names = {"status": status, "history": history, "crowd": crowd}
    chosen = sys.argv[1:] or list(names)
    results = [names[name]() for name in chosen]  # all run, whatever comes of one
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
