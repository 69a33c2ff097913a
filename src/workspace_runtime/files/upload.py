"""An upload: files out of `multipart/form-data` (RFC 7578), straight to the disk.

All of it blocks and runs in a worker thread, a piece of the body at a time: memory stays constant whatever is sent. Each file is
written beside its place and gets its name when it is whole; one that is refused leaves the others as they are.
"""

from collections import Counter
from typing import Any, BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, MultipartState, parse_options_header

from workspace_runtime.errors import WorkspaceError
from workspace_runtime.paths import parse, path_bytes, refusal, shown

from .room import EXTRACT_LIMITS, MAX_UPLOAD_FILES, Files
from .stopping import IsStopped, Stopped
from .unpack.work import Limits
from .unpacking import Spool, Unpacking
from .writing import OnConflict, Replacement, Written

MAX_HEADER_BYTES = 16 * 1024
MAX_HEADERS = 16
# Of the answer: what was written fills a half of it at most, so that what was refused is told.
MAX_ITEM_BYTES = 8 * 1024 * 1024
ITEM_BYTES = 160  # of an item without its path
# Headers of a part by which it says that its body is not plainly the file, and what they may say all the same (RFC 7578, 4.7).
_TELLING = (b"content-transfer-encoding", b"content-encoding", b"content-range")
_PLAIN = (b"", b"identity", b"binary", b"8bit", b"7bit")


class Upload:
    """One upload. `feed` the body in pieces, then `finish`, then `unpack` where that was wanted; `close` in any case.

    Archives are unpacked when all has come: only then does anybody notice a client that leaves.
    """

    def __init__(self, files: Files, boundary: bytes, folder: bytes, *, on_conflict: OnConflict, extract: bool) -> None:
        """`folder` is the path that the names are below; empty for the root."""
        self._files = files
        self._folder = folder
        self._on_conflict: OnConflict = on_conflict
        self._extract = extract
        self.items: list[dict[str, Any]] = []
        self.left_out = 0
        self._results: Counter[str] = Counter()
        self._bytes = 0
        self._size = 0
        self._count = 0  # of parts that are files
        self._field = b""
        self._value = b""
        self._disposition = b""
        self._said = ""  # the header by which a part says that its body is not plainly the file
        self._path: bytes | None = None  # the part's, once its headers are read; None where it is no file
        self._new: Replacement | None = None
        self._spool: Spool | None = None
        self._archives: list[tuple[bytes, BinaryIO]] = []  # to be unpacked when all has come
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
        if not self._count:
            raise _invalid("no part of it has a filename")

    def _close_file(self) -> None:
        if self._new is not None:
            self._new.close()
            self._new = None

    def close(self) -> None:
        """Give up the file that is not whole."""
        self._close_file()
        for _, source in self._archives:
            source.close()
        if self._spool is not None:
            self._spool.close()
            self._spool = None

    @property
    def refused(self) -> int:
        """How many files were refused."""
        return self._results["refused"]

    @property
    def count(self) -> int:
        """How many items there are, with those that are left out of `items`."""
        return sum(self._results.values())

    def answer(self) -> dict[str, Any]:
        """What became of the files: `items`, and where they are too many for one answer, how many are `left_out`."""
        return {"items": self.items} | ({"left_out": self.left_out} if self.left_out else {})

    # --- what the parser finds ----------------------------------------------------------------------------------------

    def _part_begin(self) -> None:
        self._field = self._value = self._disposition = b""
        self._said = ""
        self._path = None

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        name = self._field.lower()
        if name == b"content-disposition":
            self._disposition = self._value
        elif name in _TELLING and self._value.strip().lower() not in _PLAIN:
            self._said = f"{name.decode()}: {self._value.decode('latin-1')}"
        self._field = self._value = b""

    def _headers_finished(self) -> None:
        name = parse_options_header(self._disposition)[1].get(b"filename")
        if not name:
            return  # a field of the form, or a file input that was left empty
        name = _unescaped(name)
        self._count += 1
        if self._count > MAX_UPLOAD_FILES:
            raise WorkspaceError("upload_invalid", f"An upload may have {MAX_UPLOAD_FILES} files at most.")
        path = self._folder + b"/" + name if self._folder else name
        try:
            if self._said:
                part = self._said.startswith("content-range")
                code = "partial_content_refused" if part else "content_encoding_refused"
                raise WorkspaceError(code, f"{self._said!r}: send the file's bytes as they are.")
            parse(name)
            self._path = path = parse(path)
            if self._extract:
                self._spool = self._spool or Spool(self._files.scratch)
            else:
                self._new = self._files.writer.begin(path, on_conflict=self._on_conflict)
        except WorkspaceError as fault:
            self._refuse(path, fault)
        except OSError as fault:
            self._refuse(path, refusal(fault, path))

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._path is None:
            return
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
                self._archives.append((path, self._spool.end()))
        except WorkspaceError as fault:
            self._refuse(path, fault)
        finally:
            self._close_file()

    # --- what became of each ------------------------------------------------------------------------------------------

    def _wrote(self, written: Written) -> None:
        more = {"in_place": True} if written.in_place else {}
        self._item(written.path, size=written.size, etag=written.etag, result=written.result, **more)

    def _made(self, path: bytes, is_new: bool) -> None:
        self._item(path, size=None, etag=None, result="created" if is_new else "kept", is_dir=True)

    def _refuse(self, path: bytes, fault: WorkspaceError) -> None:
        self._refused(path, fault.code, fault.detail)
        self._path = None
        self._close_file()
        if self._spool is not None:
            self._spool.drop()

    def _refused(self, path: bytes, code: str, error: str) -> None:
        self._item(path, size=None, etag=None, result="refused", code=code, error=error)

    def _item(self, path: bytes, **rest: Any) -> None:
        item: dict[str, Any] = {"path": shown(path)}
        if encoded := path_bytes(path):
            item["path_bytes"] = encoded
        item |= rest
        self._results[item["result"]] += 1
        self._bytes += len(item["path"]) * 4 + len(item.get("error", "")) + ITEM_BYTES
        if self._bytes <= (MAX_ITEM_BYTES if item["result"] == "refused" else MAX_ITEM_BYTES // 2):
            self.items.append(item)
        else:
            self.left_out += 1

    def unpack(self, stopped: IsStopped) -> None:
        """Unpack the archives that came, each into the folder where it would stand. Raises `Stopped`; what was written stays."""
        limits = Limits(
            min(EXTRACT_LIMITS.max_bytes, self._files.max_upload_bytes),
            EXTRACT_LIMITS.max_entries,
            EXTRACT_LIMITS.max_ratio,
        )
        for path, source in self._archives:
            folder = path.rpartition(b"/")[0]
            unpacking = Unpacking(
                self._files.writer, folder, self._on_conflict, wrote=self._wrote, made=self._made, refused=self._refused
            )
            try:
                unpacking.run(path, source, limits, stopped)
            except Stopped:
                raise
            except WorkspaceError as fault:
                self._refused(path, fault.code, fault.detail)


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
