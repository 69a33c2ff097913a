"""An upload: files out of `multipart/form-data` (RFC 7578), straight to the disk.

All of it blocks and runs in a worker thread, a piece of the body at a time: memory stays constant whatever is sent. Each file is
written beside its place and gets its name when it is whole; one that is refused leaves the others as they are.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, MultipartState, parse_options_header

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.paths import parse, path_bytes, refusal, shown

from .changes import make_folder
from .extract import extract, is_archive
from .room import EXTRACT_LIMITS, MAX_UPLOAD_FILES, Files
from .unpack.work import ArchiveError, Limits
from .writing import OnConflict, Replacement, Written

HEAD_BYTES = 512
MAX_HEADER_BYTES = 16 * 1024
MAX_HEADERS = 16


class Upload:
    """One upload. `feed` the body in pieces, then `finish`; `close` in any case."""

    def __init__(self, files: Files, boundary: bytes, folder: bytes, *, on_conflict: OnConflict, extract: bool) -> None:
        """`folder` is the path that the names are below; empty for the root."""
        self._files = files
        self._folder = folder
        self._on_conflict: OnConflict = on_conflict
        self._extract = extract
        self.items: list[dict[str, Any]] = []
        self._size = 0
        self._field = b""
        self._value = b""
        self._disposition = b""
        self._path: bytes | None = None  # the part's, once its headers are read; None where it is no file
        self._new: Replacement | None = None
        self._spool: BinaryIO | None = None
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._part_begin,
                    "on_header_field": self._header_field,
                    "on_header_value": self._header_value,
                    "on_header_end": self._header_end,
                    "on_headers_finished": self._headers_finished,
                    "on_part_data": self._part_data,
                    "on_part_end": self._part_end,
                },
                max_header_count=MAX_HEADERS,
                max_header_size=MAX_HEADER_BYTES,
            )
        except FormParserError as fault:
            raise _invalid(str(fault)) from None

    def feed(self, data: bytes | bytearray) -> None:
        """The next piece of the body. Raises `WorkspaceError`: `upload_invalid`, `body_too_large`."""
        self._size += len(data)
        if self._size > self._files.max_upload_bytes:
            limit = self._files.max_upload_bytes
            raise WorkspaceError("body_too_large", f"An upload may have {limit} bytes at most.", limit=limit)
        try:
            self._parser.write(bytes(data))
        except FormParserError as fault:
            raise _invalid(str(fault)) from None

    def finish(self) -> None:
        """The body has ended. Raises `upload_invalid` where it ended too early, or held no file."""
        if self._parser.state != MultipartState.END:
            raise _invalid("it ends before its last boundary")
        if not self.items:
            raise _invalid("no part of it has a filename")

    def close(self) -> None:
        """Give up the file that is not whole."""
        if self._new is not None:
            self._new.close()
            self._new = None
        if self._spool is not None:
            self._spool.close()
            self._spool = None

    @property
    def refused(self) -> bool:
        """Whether a file was refused."""
        return any(item["result"] == "refused" for item in self.items)

    # --- what the parser finds ----------------------------------------------------------------------------------------

    def _part_begin(self) -> None:
        self._field = self._value = self._disposition = b""
        self._path = None

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = self._value
        self._field = self._value = b""

    def _headers_finished(self) -> None:
        name = parse_options_header(self._disposition)[1].get(b"filename")
        if not name:
            return  # a field of the form, or a file input that was left empty
        name = _unescaped(name)
        if len(self.items) >= MAX_UPLOAD_FILES:
            raise WorkspaceError("upload_invalid", f"An upload may have {MAX_UPLOAD_FILES} files at most.")
        path = self._folder + b"/" + name if self._folder else name
        try:
            parse(name)
            self._path = path = parse(path)
            if self._extract:
                # without a name: it goes with its descriptor, also in a crash
                self._spool = cast(BinaryIO, tempfile.TemporaryFile(dir=self._files.scratch))  # noqa: SIM115
            else:
                self._new = self._files.writer.begin(path, on_conflict=self._on_conflict)
        except WorkspaceError as fault:
            self._refuse(path, fault)
        except OSError as fault:
            self._refuse(path, refusal(fault, path))

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._new is None and self._spool is None:
            return
        assert self._path is not None
        piece = memoryview(data)[start:end]
        try:
            if self._new is not None:
                self._new.write(piece)
            elif self._spool is not None:
                self._spool.write(piece)
        except WorkspaceError as fault:
            self._refuse(self._path, fault)
        except OSError as fault:
            self._refuse(self._path, refusal(fault, self._path))

    def _part_end(self) -> None:
        path = self._path
        if path is None:
            return
        try:
            if self._new is not None:
                self._wrote(self._new.commit())
            elif self._spool is not None:
                self._unpack(path, self._spool)
        except WorkspaceError as fault:
            self._refuse(path, fault)
        finally:
            self.close()

    # --- what became of each ------------------------------------------------------------------------------------------

    def _wrote(self, written: Written) -> None:
        self._item(written.path, size=written.size, etag=written.etag, result=written.result)

    def _refuse(self, path: bytes, fault: WorkspaceError) -> None:
        self._refused(path, fault.code, fault.detail)
        self._path = None
        self.close()

    def _refused(self, path: bytes, code: str, error: str) -> None:
        self._item(path, size=None, etag=None, result="refused", code=code, error=error)

    def _item(self, path: bytes, **rest: Any) -> None:
        item: dict[str, Any] = {"path": shown(path)}
        if encoded := path_bytes(path):
            item["path_bytes"] = encoded
        self.items.append(item | rest)

    def _unpack(self, path: bytes, spool: BinaryIO) -> None:
        """Unpack an archive into the folder where it would stand."""
        spool.seek(0)
        if not is_archive(spool.read(HEAD_BYTES)):
            raise WorkspaceError("archive_invalid", f"{shown(path)!r} is no zip or tar archive.")
        spool.seek(0)
        sink = _Sink(self, path.rpartition(b"/")[0])
        limits = Limits(
            min(EXTRACT_LIMITS.max_bytes, self._files.max_upload_bytes),
            EXTRACT_LIMITS.max_entries,
            EXTRACT_LIMITS.max_ratio,
        )
        extracted = []
        try:
            extracted = extract(spool, shown(path), sink, limits, self._files.stopped)
        except ArchiveError as fault:
            extracted = fault.extracted
            raise
        finally:
            for entry in extracted:
                if entry.result == "refused":
                    self._refused(entry.path, "path_invalid", entry.reason or "It was refused.")


class _Sink:
    """Where an archive's entries go: below one folder, each as an upload of its own."""

    def __init__(self, upload: Upload, folder: bytes) -> None:
        self._upload = upload
        self._folder = folder
        self._own: dict[bytes, bytes] = {}  # where a path of the archive was written: one that comes again replaces it

    def folder(self, path: bytes) -> None:
        """An entry that is a folder."""
        make_folder(self._upload._files.root, self._below(path))

    @contextlib.contextmanager
    def file(self, path: bytes, executable: bool) -> Iterator[Replacement]:
        """An entry that is a file: written when the context ends well."""
        wanted = self._below(path)
        before = self._own.get(wanted)
        on_conflict = self._upload._on_conflict if before is None else "overwrite"
        new = self._upload._files.writer.begin(before or wanted, on_conflict=on_conflict, executable=executable)
        try:
            yield new
            written = new.commit()
        finally:
            new.close()
        self._own[wanted] = written.path
        if before is None:
            self._upload._wrote(written)

    def _below(self, path: bytes) -> bytes:
        return parse(self._folder + b"/" + path if self._folder else path)


def boundary_of(content_type: bytes) -> bytes:
    """The boundary of a body of this type. Raises `unsupported_media_type`, `upload_invalid`."""
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        raise WorkspaceError("unsupported_media_type", "An upload is sent as multipart/form-data.")
    boundary = options.get(b"boundary")
    if not boundary:
        raise _invalid("its Content-Type names no boundary")
    return boundary


def _unescaped(name: bytes) -> bytes:
    """A filename as it was before a browser encoded it: the three escapes of HTML's multipart encoding algorithm."""
    return name.replace(b"%22", b'"').replace(b"%0D", b"\r").replace(b"%0A", b"\n")


def _invalid(reason: str) -> WorkspaceError:
    return WorkspaceError("upload_invalid", f"The upload can't be read: {reason.rstrip('.')}.")
