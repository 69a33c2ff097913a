"""Unpacks the archives of an upload into the workspace: a spool on the state's disk, and where their entries go."""

import contextlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.paths import parse, shown

from .batch import Batch
from .changes import make_folder
from .extract import extract, is_archive
from .stopping import IsStopped
from .unpack.work import ArchiveError, Limits
from .writing import OnConflict, Replacement, Writer, Written

HEAD_BYTES = 512


class Spool:
    """Archives one after the other in a file without a name: it goes with its descriptor, also in a crash."""

    def __init__(self, folder: Path) -> None:
        self._file = cast(BinaryIO, tempfile.TemporaryFile(dir=folder))  # noqa: SIM115
        self._size = 0
        self._start = 0

    def write(self, data: memoryview) -> None:
        """Append to the archive that comes in. Raises `OSError`."""
        self._file.write(data)
        self._size += len(data)

    def end(self) -> BinaryIO:
        """The archive is whole: it, open for reading."""
        self._file.flush()
        start, self._start = self._start, self._size
        return cast(BinaryIO, io.BufferedReader(_Section(self._file.fileno(), start, self._size)))

    def drop(self) -> None:
        """Forget what came of an archive that is refused."""
        self._start = self._size

    def close(self) -> None:
        """Let go of all."""
        self._file.close()


class _Section(io.RawIOBase):
    """A part of an open file."""

    def __init__(self, file: int, start: int, end: int) -> None:
        super().__init__()
        self._file, self._start, self._end = file, start, end
        self._at = start

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: object, /) -> int:
        view = memoryview(buffer)[: max(0, self._end - self._at)]  # type: ignore[arg-type]
        done = os.preadv(self._file, [view], self._at)
        self._at += done
        return done

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: self._start, os.SEEK_CUR: self._at, os.SEEK_END: self._end}[whence]
        self._at = max(self._start, base + offset)
        return self._at - self._start


class Unpacking:
    """One archive's way into a folder, each entry as an upload of its own; also the sink that `extract` writes to."""

    def __init__(
        self,
        writer: Writer,
        folder: bytes,
        on_conflict: OnConflict,
        *,
        wrote: Callable[[Written], None],
        made: Callable[[bytes, bool], None],
        refused: Callable[[bytes, str, str], None],
    ) -> None:
        """`folder` is a path from the root. Told of each entry: `wrote` a file, `made` a folder (and whether it is new), `refused`
        a path, a code and a sentence."""
        self._writer = writer
        self._folder = folder
        self._on_conflict: OnConflict = on_conflict
        self._wrote, self._made, self._refused = wrote, made, refused
        self._own: dict[bytes, bytes] = {}  # where a path of the archive was written: one that comes again replaces it
        self._again: set[bytes] = set()
        self._batch = Batch(self._named, lambda path, fault: refused(path, fault.code, fault.detail))

    def run(self, path: bytes, source: BinaryIO, limits: Limits, stopped: IsStopped) -> None:
        """Unpack. Raises `WorkspaceError`: `archive_invalid`, `archive_too_large`, what stopped it all; what was written stays."""
        if not is_archive(source.read(HEAD_BYTES)):
            raise WorkspaceError("archive_invalid", f"{shown(path)!r} is no zip or tar archive.")
        source.seek(0)
        extracted = []
        with contextlib.closing(self._batch):
            try:
                extracted = extract(source, shown(path), self, limits, stopped)
                self._batch.finish()
            except ArchiveError as fault:
                extracted = fault.extracted
                self._batch.finish()
                raise
            finally:
                for entry in extracted:
                    if entry.result == "refused":
                        self._refused(entry.path, "path_invalid", entry.reason or "It was refused.")

    def folder(self, path: bytes) -> None:
        """An entry that is a folder."""
        wanted = self._below(path)
        self._made(wanted, make_folder(self._writer.root, wanted, self._batch.touched))

    @contextlib.contextmanager
    def file(self, path: bytes, executable: bool) -> Iterator[Replacement]:
        """An entry that is a file: it waits for its name when the context ends well."""
        wanted = self._below(path)
        if self._batch.holds(wanted):
            self._batch.flush()
        before = self._own.get(wanted)
        on_conflict = self._on_conflict if before is None else "overwrite"
        new = self._writer.begin(before or wanted, on_conflict=on_conflict, executable=executable)
        try:
            yield new
        except BaseException:
            new.close()
            raise
        if before is not None:
            self._again.add(before)
        self._batch.add(new)

    def _named(self, new: Replacement, written: Written) -> None:
        if new.path in self._again:
            return
        self._own[new.path] = written.path
        self._wrote(written)

    def _below(self, path: bytes) -> bytes:
        return parse(self._folder + b"/" + path if self._folder else path)
