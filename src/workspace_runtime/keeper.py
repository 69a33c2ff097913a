"""The keeper: runs one command so that nothing of it survives, however it or its parent ends.

    python -I -S keeper.py [--parent PID] -- COMMAND ARG...      (`processes` starts it so that its bytecode is cached)

The keeper stays as the command's parent and makes itself a *child subreaper*: whatever the command starts stays below the
keeper, also what called `setsid`, forked twice or cleared its environment. The command runs in a session of its own, has
this process's standard streams as they are, and dies by SIGKILL should the keeper be killed. The keeper itself lets go of
the streams, so that its parent sees the end of output when the command's tree is gone.

What ends it, and how:

- the command exits: what is left of its tree gets SIGTERM, `REST_GRACE_S` later SIGKILL;
- SIGTERM, SIGINT or SIGHUP: SIGTERM for the command; SIGKILL for the whole tree at the second one or `TERM_GRACE_S` later;
- SIGQUIT, or the death of the keeper's parent (told by the kernel as `PARENT_DIED`): SIGKILL for the whole tree at once.

The keeper ends when its tree is gone, by the command's exit status or by the signal that the command died of. A process that
can't be killed (another user's, or one stuck in the kernel) is given up after `GIVE_UP_S`.

`run_kept` does the same for the server itself: the program's first process stays behind as its keeper.

Every agent waits for this file to load, so it imports next to nothing: `posix` instead of `os` (1.5 ms), `_signal` instead of
`signal` (6 ms), `_ctypes` instead of `ctypes` (4 ms) are the same functions without the comfort around them. Where a kernel
lacks the subreaper or /proc (macOS, some sandboxes) what can be found is killed, and the command's process group with it.
"""

import posix as os
import sys
import time

TYPE_CHECKING = False  # what `typing` calls so, without importing it
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
else:
    try:
        import _signal as signal
    except ImportError:  # pragma: no cover - every CPython has it
        import signal

# In the environment of everything below a keeper: its process id. By it `processes` finds what a killed keeper left.
MARK = "WORKSPACE_RUNTIME_KEEPER"
TERM_GRACE_S = 3.0
REST_GRACE_S = 0.2
GIVE_UP_S = 4.0
# A signal of its own, because the kernel also sends it when only the *thread* that started us ends: then it means nothing.
PARENT_DIED = signal.SIGUSR1
# Asks the server's keeper to end what fell to it while the server lives: the rest of an agent whose own keeper was killed.
SWEEP = signal.SIGUSR2

_WATCHED = (
    signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, PARENT_DIED, SWEEP,
)  # fmt: skip
_SET_PDEATHSIG = 1
_SET_DUMPABLE = 4
_SET_CHILD_SUBREAPER = 36
_SI_KERNEL = 0x80

_server_keeper = 0


def server_keeper() -> int:
    """The process id of the keeper that this process runs under by `run_kept`, 0 where there is none."""
    return _server_keeper if _server_keeper and os.getppid() == _server_keeper else 0


def keep(command: list[str], parent: int) -> None:
    """Run `command` and return when nothing of it is left, having ended this process the way the command did.

    `parent` is the process whose death ends everything. Never returns.
    """
    try:
        os.setsid()  # a Ctrl-C for the server must not reach its agents
    except OSError:
        pass  # a session of our own already
    _prctl(_SET_PDEATHSIG, PARENT_DIED)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)
    subreaper = _prctl(_SET_CHILD_SUBREAPER, 1)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    me = os.getpid()
    child = os.fork()
    if child == 0:
        _execute(command, before, me)
    _let_go()
    os.closerange(3, 4096)
    tree = _Tree(child, subreaper)
    deadline = None
    while tree.status is None and tree.reap() and tree.status is None:
        signo, _ = _wait(None if deadline is None else deadline - time.monotonic())
        if signo in (signal.SIGCHLD, SWEEP) or (signo == PARENT_DIED and os.getppid() == parent):
            continue
        if signo in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) and deadline is None:
            _send(child, signal.SIGTERM)
            deadline = time.monotonic() + TERM_GRACE_S
            continue
        tree.kill()
        break
    tree.finish(parent)
    _end_as(tree.status)


def run_kept(main: "Callable[[], int]") -> int:
    """Run `main` in a child of this process, which stays as its keeper; returns the exit status, in both of them.

    Call it first thing, with one thread and nothing open. SIGTERM, SIGINT, SIGHUP and SIGQUIT go to the child, and only to
    the child: it decides what they mean. When it is gone, whatever it left is ended. When `main`'s process died of a signal,
    so does this one. When this one is killed, the child gets SIGTERM. Works as the first process of a container too.
    """
    global _server_keeper
    me = os.getpid()
    subreaper = _prctl(_SET_CHILD_SUBREAPER, 1)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    child = os.fork()
    if child == 0:
        _server_keeper = me
        _prctl(_SET_PDEATHSIG, signal.SIGTERM)
        orphaned = os.getppid() != me
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return 128 + signal.SIGTERM if orphaned else main()
    _let_go()
    tree = _Tree(child, subreaper)
    while tree.reap() and tree.status is None:
        signo, terminal = _wait(None)
        if signo == SWEEP:
            tree.kill(spare=child)
        elif signo not in (signal.SIGCHLD, PARENT_DIED) and not (terminal and _same_group(child)):
            # a key of the terminal reached the child already: twice would mean "at once"
            _send(child, signo)
    tree.finish(0)
    if tree.status is None or not os.WIFEXITED(tree.status):
        _end_as(tree.status)
    return os.WEXITSTATUS(tree.status or 0)


class _Tree:
    """All processes below this one. `status` is the wait status of the first, once it has ended."""

    def __init__(self, first: int, subreaper: bool) -> None:
        self.first = first
        self.subreaper = subreaper
        self.status: int | None = None

    def reap(self) -> bool:
        """Take everything that has ended; whether any process is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self.first:
                self.status = status

    def finish(self, parent: int) -> None:
        """The first process is gone: end all others, with a short grace while `parent` lives."""
        if self.reap():
            deadline = time.monotonic() + REST_GRACE_S
            for pid in _descendants(0):
                _send(pid, signal.SIGTERM)
            while self.reap() and (left := deadline - time.monotonic()) > 0:
                signo, _ = _wait(left)
                if signo == signal.SIGQUIT or (signo == PARENT_DIED and parent and os.getppid() != parent):
                    break
            self.kill()
        if not self.subreaper:
            _send(-self.first, signal.SIGKILL)

    def kill(self, spare: int = 0) -> None:
        """SIGKILL for every process of the tree, but not for `spare` and what is below it.

        All are stopped first, and looked for again until no new one appears, so that nothing can fork faster than it is
        killed. What is left after `GIVE_UP_S` can't be killed by us.
        """
        give_up = time.monotonic() + GIVE_UP_S
        while self.reap() and time.monotonic() < give_up:
            found: set[int] = set()
            while new := [pid for pid in _descendants(spare) if pid not in found]:
                for pid in new:
                    _send(pid, signal.SIGSTOP)
                found.update(new)
            for pid in found:
                _send(pid, signal.SIGKILL)
            if spare and not found:
                return
            _wait(0.01, (signal.SIGCHLD,))  # what else was sent is for whoever called


def _descendants(spare: int) -> list[int]:
    """The ids of all processes below this one, parents first; without `spare` and what is below it."""
    children: dict[int, list[int]] = {}
    try:
        names = os.listdir("/proc")
    except OSError:
        return []
    for name in names:
        if not name.isdigit():
            continue
        try:
            file = os.open(f"/proc/{name}/stat", os.O_RDONLY | os.O_CLOEXEC)
            try:
                line = os.read(file, 512)
            finally:
                os.close(file)
        except OSError:
            continue
        # pid (name) state ppid …: the name may hold anything, also spaces and brackets
        parent = line[line.rfind(b")") + 1 :].split(None, 2)[1]
        children.setdefault(int(parent), []).append(int(name))
    found: list[int] = []
    level = [os.getpid()]
    while level:
        level = [child for pid in level for child in children.get(pid, ()) if child != spare]
        found += level
    return found


def _wait(timeout: float | None, signals: tuple[int, ...] = _WATCHED) -> tuple[int, bool]:
    """The next of the signals, and whether the terminal sent it; (0, False) when `timeout` seconds passed."""
    if sys.platform != "darwin":
        if timeout is None:
            info = signal.sigwaitinfo(signals)
        else:
            told = signal.sigtimedwait(signals, max(timeout, 0))
            if told is None:
                return 0, False
            info = told
        return info.si_signo, info.si_code == _SI_KERNEL
    deadline = None if timeout is None else time.monotonic() + timeout  # macOS has no wait with a timeout
    while deadline is None or time.monotonic() < deadline:
        pending = [signo for signo in signals if signo in signal.sigpending()]
        if pending:
            signo = signal.sigwait(pending)
            return signo, signo == signal.SIGINT
        time.sleep(0.02)
    return 0, False


def _send(pid: int, signo: int) -> None:
    try:
        os.kill(pid, signo)
    except OSError:
        pass  # gone, or another user's


def _same_group(pid: int) -> bool:
    try:
        return os.getpgid(pid) == os.getpgrp()
    except OSError:
        return False


def _prctl(option: int, value: int) -> bool:
    """Call prctl(2); false where there is none, or it refuses."""
    if sys.platform != "linux":
        return False
    try:
        import _ctypes

        library = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]  # None is this program itself
        address = _ctypes.dlsym(library, "prctl")
        return bool(_ctypes.call_function(address, (option, value, 0, 0, 0)) == 0)
    except (ImportError, AttributeError, OSError):
        pass
    try:
        import ctypes

        return bool(ctypes.CDLL(None).prctl(option, value, 0, 0, 0) == 0)
    except (ImportError, AttributeError, OSError):
        return False


def _execute(command: list[str], mask: "set[signal.Signals | int]", keeper: int) -> None:
    """Become the command. Never returns."""
    fault: OSError | None = None
    try:
        os.setsid()
        _prctl(_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != keeper:
            os._exit(128 + signal.SIGKILL)
        for name in ("SIGPIPE", "SIGXFSZ", "SIGXFZ"):  # what Python ignores for itself
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_DFL)
        environ = dict(os.environ)
        environ[MARK.encode()] = str(keeper).encode()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        folders = [b""]
        if "/" not in command[0]:
            folders = [(folder or b".") + b"/" for folder in environ.get(b"PATH", b"/usr/bin:/bin").split(b":")]
        name_bytes = command[0].encode(sys.getfilesystemencoding(), "surrogateescape")
        for folder in folders:
            try:
                os.execve(folder + name_bytes, command, environ)
            except OSError as refused:
                # a folder of PATH that may not be entered is like one without the command
                missing = isinstance(refused, (FileNotFoundError, NotADirectoryError)) or not _exists(
                    folder + name_bytes
                )
                if fault is None or not missing:
                    fault = FileNotFoundError(2, "No such file or directory") if missing else refused
        reason = fault.strerror if fault else "no such command"
        os.write(2, f"workspace-runtime: {command[0]!r} can't be started: {reason}\n".encode(errors="replace"))
    finally:
        os._exit(127 if fault is None or isinstance(fault, FileNotFoundError) else 126)


def _exists(path: bytes) -> bool:
    try:
        os.stat(path)
    except OSError:
        return False
    return True


def _let_go() -> None:
    """Give up the standard streams: they are the child's alone."""
    null = os.open("/dev/null", os.O_RDWR)
    for file in (0, 1, 2):
        os.dup2(null, file)
    if null > 2:
        os.close(null)


def _end_as(status: int | None) -> None:
    """End this process as the child ended. Never returns."""
    if status is None:
        status = signal.SIGKILL
    if os.WIFEXITED(status):
        os._exit(os.WEXITSTATUS(status))
    signo = os.WTERMSIG(status)
    _prctl(_SET_DUMPABLE, 0)  # the child's core is the one worth keeping
    if signo != signal.SIGKILL:
        signal.signal(signo, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signo,))
    _send(os.getpid(), signo)
    os._exit(128 + signo)  # the first process of a container can't be killed by itself


def main(arguments: list[str]) -> None:
    """The command line, see the module. Never returns."""
    parent = os.getppid()
    if arguments[:1] == ["--parent"]:
        parent = int(arguments[1])
        arguments = arguments[2:]
    if arguments[:1] != ["--"] or len(arguments) < 2:
        sys.stderr.write("usage: keeper.py [--parent PID] -- COMMAND ARG...\n")
        sys.exit(2)
    keep(arguments[1:], parent)


if __name__ == "__main__":
    main(sys.argv[1:])
