"""The list of all paths of the workspace, kept exact without a watcher.

Invariant: what `refresh` returns holds every file and folder that was there when it was called, and nothing that was gone
by then. Left out are what git ignores, `.git` itself and our own temporary names; links are listed, never followed; FIFOs,
sockets and devices are not listed, as git does not list them.

A folder's time of change tells whether names in it came or went, so a refresh only looks at the known folders and reads
those anew whose mark differs. A change within the clock's tick of a reading leaves no trace in that mark: a folder that had
changed just before it was read is read again (git's index calls this "racily clean"). Times of a network file system may be
cached by the kernel; there the list is as late as that cache.

Names are kept as one text for each folder and not as one object for each path: that is a tenth of the memory, and a search runs
over it at the speed of C. A path longer than the system's limit of 4,095 bytes can't be named by anyone, and is not listed.
"""

import errno
import os
import threading
import time
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.files.ignored import Rules, root_rules
from workspace_runtime.files.temporary import is_temporary
from workspace_runtime.paths import WorkspaceRoot

# Names in one text at most: a search in it holds the interpreter's lock for so long.
BLOCK = 4096
# How close to its reading a change may leave the same time. The second is for disks that keep whole seconds.
_TICK_NS = 50_000_000
_COARSE_TICK_NS = 2_500_000_000
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_RULES_FILES = frozenset({".git", ".gitignore"})

# What tells that names in a folder, or a file's content, have changed. None: look again in any case.
_Mark = tuple[int, int, int] | None


@dataclass(frozen=True, slots=True)
class Names:
    """Names of one folder: each after a NUL, which no name can hold, and one NUL at the end.

    They are normalised (NFC), so that whoever types a letter finds it however it was written; `odd` has for those that differ what
    they really are. `folded` is the same in lower case, at the same positions; the same object where nothing differs. Names that
    are not UTF-8 have surrogates, as `os.fsdecode` gives them.
    """

    text: str
    folded: str
    odd: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def real(self, name: str) -> tuple[str, ...]:
        """What a name of `text` is on the disk: two of one folder may be the same when they are normalised."""
        return self.odd.get(name, (name,))


@dataclass(frozen=True, slots=True)
class Piece:
    """What lies directly in one folder. `prefix` is its path: empty for the root, else ending in `/`; `normal` the same normalised,
    None where that is no other; `folded` is `normal` as in `Names`."""

    prefix: str
    folded: str
    files: tuple[Names, ...]
    folders: tuple[Names, ...]
    normal: str | None = None

    @property
    def above(self) -> str:
        """The path that the names of its texts lie below."""
        return self.prefix if self.normal is None else self.normal

    @property
    def is_odd(self) -> bool:
        """Whether something in it is written otherwise than its texts are."""
        return self.normal is not None or any(names.odd for names in (*self.files, *self.folders))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All paths at one time. Immutable: it may be searched by any thread while the index goes on."""

    pieces: tuple[Piece, ...]

    def files(self) -> Iterator[str]:
        """The paths of all files and links, in no order."""
        for piece in self.pieces:
            yield from _paths(piece.prefix, piece.files)

    def folders(self) -> Iterator[str]:
        """The paths of all folders but the root, in no order."""
        for piece in self.pieces:
            yield from _paths(piece.prefix, piece.folders)


def _paths(prefix: str, blocks: tuple[Names, ...]) -> Iterator[str]:
    for names in blocks:
        for name in names.text[1:-1].split("\0"):
            for real in names.real(name):
                yield prefix + real


def normalised(text: str) -> str:
    """The text in the form that composes letters (NFC); the same object where that changes nothing."""
    if text.isascii():
        return text
    normal = unicodedata.normalize("NFC", text)
    return text if normal == text else normal


def fold(text: str) -> str:
    """`text` in lower case, of the same length: the few letters whose lower case is longer stay as they are."""
    lower = text.lower()
    if len(lower) != len(text):
        lower = "".join(letter.lower() if len(letter.lower()) == 1 else letter for letter in text)
    return text if lower == text else lower


def _blocks(names: list[str]) -> tuple[Names, ...]:
    blocks = []
    real: dict[str, tuple[str, ...]] = {}
    for name in names:
        if not name.isascii():
            normal = normalised(name)
            real[normal] = (*real.get(normal, ()), name)
    odd = {normal: names for normal, names in real.items() if names != (normal,)}
    if odd:
        names = list(dict.fromkeys(map(normalised, names)))
    for start in range(0, len(names), BLOCK):
        here = names[start : start + BLOCK]
        text = "\0" + "\0".join(here) + "\0"
        blocks.append(Names(text, fold(text), {name: odd[name] for name in here if name in odd} if odd else {}))
    return tuple(blocks)


class _Folder:
    """A known folder. `base` are the rules that it has from above, `rules` those that hold in it."""

    __slots__ = ("base", "children", "mark", "path", "piece", "rules", "rules_mark", "special")

    def __init__(self, path: bytes, base: Rules) -> None:
        self.path = path
        self.base = self.rules = base
        self.special = False  # whether it has rules of its own, which may change without the folder
        self.mark: _Mark = None
        self.rules_mark: _Mark = None
        self.piece = Piece("", "", (), ())
        self.children: dict[str, _Folder] = {}


class FileIndex:
    """The workspace's paths. Its methods may be called from any thread; they wait for the disk."""

    def __init__(self, root: WorkspaceRoot) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._top: _Folder | None = None
        self._known: list[_Folder] = []
        self._snapshot = Snapshot(())

    def refresh(self) -> Snapshot:
        """All paths as they are now; none where the root is gone. The first call walks the whole workspace.

        Gives the same object while nothing differs. Raises `OSError` when the root can't be opened, or the machine is out of descriptors or memory.
        """
        with self._lock:
            held = self._root.open_folder(b"")
            try:
                if self._look(held):
                    self._collect()
            except OSError:
                self._top = None  # half read: the next call begins anew
                raise
            finally:
                os.close(held)
            return self._snapshot

    def _look(self, held: int) -> bool:
        """Bring the known folders up to date; whether anything differs. `held` is the root's descriptor."""
        rules = root_rules(self._root)
        if self._top is None or rules != self._top.rules:
            self._top = _Folder(b"", rules)
            self._walk([self._top])
            return True
        return True in [self._reread(folder) for folder in self._changed(held)]

    def _changed(self, held: int) -> list[_Folder]:
        """The folders whose names or rules may have changed, those above before those below."""
        changed = []
        look = os.stat
        for folder in self._known:
            try:
                status = look(folder.path or b".", dir_fd=held, follow_symlinks=False)
            except OSError:
                changed.append(folder)
                continue
            if (status.st_ctime_ns, status.st_mtime_ns, status.st_ino) != folder.mark or (
                folder.special and (folder.rules_mark is None or folder.rules_mark != _rules_mark(held, folder.path))
            ):
                changed.append(folder)
        return changed

    def _walk(self, todo: list[_Folder]) -> None:
        """Read these folders and all below."""
        while todo:
            folder = todo.pop()
            folder.children = {}
            self._read(folder)
            todo += folder.children.values()

    def _reread(self, folder: _Folder) -> bool:
        """Read one folder again; what is new below it is walked, what lies below it and stays is kept. Whether it differs."""
        rules, children, piece = folder.rules, folder.children, folder.piece
        self._read(folder)
        if folder.rules == rules and folder.piece == piece:
            folder.children, folder.piece = children, piece
            return False
        if folder.rules != rules:
            children = {}
        new = [child for name, child in folder.children.items() if name not in children]
        folder.children = {name: children.get(name, child) for name, child in folder.children.items()}
        self._walk(new)
        return True

    def _collect(self) -> None:
        """The list of known folders and the snapshot, from the tree of folders."""
        assert self._top is not None
        known = [self._top]
        for folder in known:  # grows while it is gone through
            known += folder.children.values()
        self._known = known
        self._snapshot = Snapshot(tuple(folder.piece for folder in known))

    # --- one folder ---------------------------------------------------------------------------------------------------

    def _read(self, folder: _Folder) -> None:
        """Read a folder's names, and its rules where it has some; its children are made anew, not yet read."""
        prefix = os.fsdecode(folder.path) + "/" if folder.path else ""
        now = time.time_ns()
        files: list[str] = []
        folders: list[str] = []
        folder.special, folder.mark = False, None
        try:
            held = self._root.open_folder(folder.path)
            try:
                folder.mark = _mark(os.fstat(held), now)
                with os.scandir(held) as entries:
                    found = list(entries)
                self._read_rules(folder, held, found, now)
                _sort_out(found, folder.rules, files, folders)
            finally:
                os.close(held)
        except PermissionError:
            folder.mark = self._mark_of_unread(folder.path, now)
        except WorkspaceError:  # no folder any more
            pass
        except OSError as fault:
            if fault.errno in _EXHAUSTED:
                raise
            folder.mark = None  # removed meanwhile: its parent's mark tells
        normal = normalised(prefix)
        other = None if normal == prefix else normal
        folder.piece = Piece(prefix, fold(normal), _blocks(files), _blocks(folders), other)
        above, layers = folder.rules.path, folder.rules.layers
        folder.children = {
            name: _Folder(os.fsencode(prefix + name), Rules(f"{above}{name}/", layers)) for name in folders
        }

    def _read_rules(self, folder: _Folder, held: int, found: list[os.DirEntry[str]], now: int) -> None:
        if not folder.path:  # the root's rules are read with every refresh
            return
        own = {entry.name for entry in found if entry.name in _RULES_FILES}
        folder.special = bool(own)
        folder.rules = folder.base.here(held) if own else folder.base
        # A nested repository has rules in more places: they are read with every refresh.
        folder.rules_mark = None if ".git" in own else _rules_mark(held, b"", now)

    def _mark_of_unread(self, path: bytes, now: int) -> _Mark:
        """The mark of a folder that can't be opened, so that a change of its permissions is seen."""
        try:
            return _mark(os.stat(path, dir_fd=self._root.fd, follow_symlinks=False), now)
        except OSError:
            return None


def _sort_out(found: list[os.DirEntry[str]], rules: Rules, files: list[str], folders: list[str]) -> None:
    """Put the names that count into the two lists."""
    ignores = rules.ignores
    for entry in found:
        name = entry.name
        if entry.is_dir(follow_symlinks=False):
            if not ignores(name, is_dir=True):
                folders.append(name)
        elif not (entry.is_file(follow_symlinks=False) or entry.is_symlink()) or is_temporary(name):
            continue
        elif not ignores(name, is_dir=False):
            files.append(name)


def _mark(status: os.stat_result, now: int) -> _Mark:
    """What to compare later; None where a later change might leave the same. `now` is when the reading began."""
    changed = status.st_ctime_ns
    tick = _TICK_NS if changed % 1_000_000_000 else _COARSE_TICK_NS
    if changed > now - tick:
        return None
    return changed, status.st_mtime_ns, status.st_ino


def _rules_mark(folder: int, path: bytes, now: int | None = None) -> _Mark:
    """The mark of a folder's `.gitignore`. With `now`, None where it can't be relied on later."""
    try:
        status = os.stat(path + b"/.gitignore" if path else b".gitignore", dir_fd=folder, follow_symlinks=False)
    except OSError:
        return None
    if now is not None:
        return _mark(status, now)
    return status.st_ctime_ns, status.st_mtime_ns, status.st_ino
